-- Cancel a job that has not started; ask a running one to stop. ARGV: job_id.

local id = ARGV[1]
local state = field(id, 'state')
if not state then return { 'unknown' } end
if state == 'RUNNING' then
  redis.call('HSET', job_key(id), 'cancel_requested', '1')
elseif not TERMINAL[state] then
  redis.call('HSET', job_key(id), 'cancel_requested', '1')
  finish(id, 'CANCELLED', CANCELLED)
end
return job_reply(id)
