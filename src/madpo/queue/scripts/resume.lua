-- Take a job that failed or was cancelled up again, as itself. ARGV: job_id, how often it had been resumed when this was
-- asked for (asked for again, it changes nothing), and the name of the caller, for whose job it counts from now on.

local id, resumes, caller = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local state = field(id, 'state')
if not state or field(id, 'retired') then return { 'unknown' } end
if tonumber(field(id, 'resumes') or '0') > resumes then return job_reply(id) end
if state ~= 'FAILED' and state ~= 'CANCELLED' then return { 'no_failure', state } end

local waiting = {}
for _, dependency in ipairs(cjson.decode(field(id, 'depends_on'))) do
  local found = field(dependency, 'state')
  if not found or field(dependency, 'retired') then return { 'unknown_dependency', dependency } end
  if found == 'FAILED' or found == 'CANCELLED' then return { 'ended_dependency', dependency, found } end
  if found ~= 'SUCCEEDED' then waiting[#waiting + 1] = dependency end
end

redis.call('HSET', job_key(id), 'resumes', resumes + 1, 'crashes', 0, 'interruptions', 0, 'crash_fingerprint', '',
  'waiting_for', #waiting)
if caller ~= '' then redis.call('HSET', job_key(id), 'resumed_by', caller) end
redis.call('HDEL', reserved, id)
redis.call('HDEL', job_key(id), 'cancel_requested', 'crash_fingerprint', 'finish_time', 'final_cursor', 'ended_by',
  'not_before_ms')
redis.call('PERSIST', events_key(id))
wait_or_start(id, waiting, 'resumed on request')
return job_reply(id)
