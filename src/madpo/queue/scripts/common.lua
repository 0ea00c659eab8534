-- Loaded in front of every script. KEYS[1] is the namespace; the keys are described in keys.py.
--
-- Every script answers an array: a word, then what belongs to it. A script that is sent twice because its reply was
-- lost changes nothing the second time and answers the same.

local root = KEYS[1]
local jobs = root .. ':jobs'
local leases = root .. ':leases'
local reserved = root .. ':reserved'
local retired = root .. ':retired'
local marked = root .. ':mark'
local EVENTS_KEPT = 10000
local EVENTS_TTL_S = 30 * 24 * 3600
local DEAD_LETTERS_KEPT = 10000
local INTERRUPTIONS = 20
local FIRST_PAUSE_MS = 5000
local LONGEST_PAUSE_MS = 300000
local TERMINAL = { SUCCEEDED = true, FAILED = true, CANCELLED = true }

-- Times use the server's clock alone: workers' clocks may be wrong. This one may jump, so no lease ends by it.
local clock = redis.call('TIME')
local now_s = string.format('%d.%06d', clock[1], clock[2])
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function job_key(id) return root .. ':job:' .. id end
local function events_key(id) return root .. ':job:' .. id .. ':events' end
local function dependents_key(id) return root .. ':job:' .. id .. ':dependents' end
local function bell_key(queue) return root .. ':queue:' .. queue end
local function pending_key(queue) return root .. ':queue:' .. queue .. ':pending' end
local function waiting_key(queue) return root .. ':queue:' .. queue .. ':waiting' end
local function dead_key(queue) return root .. ':queue:' .. queue .. ':dead' end
local function announced_key(queue) return root .. ':queue:' .. queue .. ':announced' end

-- What each worker has announced, by its id: a JSON array of names, or false once that holds no more.
local function live_announcements(queue)
  local found, entries = {}, redis.call('HGETALL', announced_key(queue))
  for i = 1, #entries, 2 do
    local expiry_ms, names = entries[i + 1]:match('^(%d+) (.*)$')
    found[entries[i]] = tonumber(expiry_ms) > now_ms and names
  end
  return found
end

local function field(id, name) return redis.call('HGET', job_key(id), name) end

local function job_reply(id) return { 'job', redis.call('HGETALL', job_key(id)) } end

-- Whether this attempt of this worker holds the job. A lease that was not renewed and that nobody reaped yet still
-- counts: no one else can have started.
local function owns(id, attempt, worker_id)
  local record = redis.call('HMGET', job_key(id), 'state', 'attempt', 'worker_id')
  return record[1] == 'RUNNING' and record[2] == attempt and record[3] == worker_id
end

-- Begin a lease, or renew it. It ends when nobody renews it for its length, by the clock of who looks; the time in the set
-- is for versions that trust the server's.
local function hold(id, lease_ms)
  redis.call('ZADD', leases, now_ms + lease_ms, id)
  redis.call('HSET', job_key(id), 'lease_ms', lease_ms)
  redis.call('HINCRBY', job_key(id), 'renewals', 1)
end

-- Changes with every renewal. Older workers change the time alone.
local function lease_mark(id)
  return (field(id, 'renewals') or '0') .. '@' .. (redis.call('ZSCORE', leases, id) or '')
end

-- Whether a pending job may be taken. A pause that lies too far ahead was set before the clock was set back.
local function is_due(id)
  local due_ms = tonumber(field(id, 'not_before_ms') or 0)
  return due_ms <= now_ms or due_ms > now_ms + LONGEST_PAUSE_MS
end

-- Whether this attempt was ended by the same call before.
local function repeated(id, attempt, worker_id, call)
  local record = redis.call('HMGET', job_key(id), 'ended_by', 'attempt', 'worker_id')
  return record[1] == call and record[2] == attempt and record[3] == worker_id
end

local function stale(id)
  return { 'stale', field(id, 'state') or 'unknown', field(id, 'attempt') or '0' }
end

local function emit(id, kind, data)
  return redis.call('XADD', events_key(id), 'MAXLEN', '~', EVENTS_KEPT, '*', 'type', kind, 'data', data)
end

-- Set the state and say so in the event stream; answers the event's cursor.
local function enter(id, state, reason)
  redis.call('HSET', job_key(id), 'state', state, 'reason', reason)
  local change = { state = state, attempt = tonumber(field(id, 'attempt')), reason = reason }
  return emit(id, 'state', cjson.encode(change))
end

-- Jobs keep their place by creation, so one that is given back is next again.
local function make_pending(id, reason)
  local queue = field(id, 'queue')
  redis.call('SREM', waiting_key(queue), id)
  redis.call('ZADD', pending_key(queue), field(id, 'order'), id)
  redis.call('HSET', job_key(id), 'pending_time', now_s)
  enter(id, 'PENDING', reason)
  redis.call('XADD', bell_key(queue), 'MAXLEN', 1, '*', 'job_id', id)
end

-- End one job; answers the jobs that wait for it.
local function close(id, state, reason)
  local queue = field(id, 'queue')
  redis.call('ZREM', leases, id)
  redis.call('ZREM', pending_key(queue), id)
  redis.call('SREM', waiting_key(queue), id)
  local cursor = enter(id, state, reason)
  redis.call('HSET', job_key(id), 'finish_time', now_s, 'final_cursor', cursor)
  redis.call('EXPIRE', events_key(id), EVENTS_TTL_S)
  local dependents = redis.call('SMEMBERS', dependents_key(id))
  redis.call('DEL', dependents_key(id))
  return dependents
end

-- End a job, then let go of the jobs that wait for it: a success may start them, anything else fails them, and theirs.
local function finish(id, state, reason, result)
  if result and result ~= '' then redis.call('HSET', job_key(id), 'result', result) end
  local waiting = close(id, state, reason)
  if state == 'SUCCEEDED' then
    for _, dependent in ipairs(waiting) do
      if field(dependent, 'state') == 'WAITING' and redis.call('HINCRBY', job_key(dependent), 'waiting_for', -1) == 0 then
        make_pending(dependent, '')
      end
    end
    return
  end
  local cause = 'dependency ' .. id .. (state == 'FAILED' and ' failed: ' .. reason or ' was cancelled')
  while #waiting > 0 do
    local dependent = table.remove(waiting)
    -- A job may be reached over several dependencies, but ends once.
    if field(dependent, 'state') == 'WAITING' then
      for _, next_dependent in ipairs(close(dependent, 'FAILED', cause)) do waiting[#waiting + 1] = next_dependent end
    end
  end
end

local CANCELLED = 'cancelled on request'

-- A reason with a note behind its first line; the end of a log may follow.
local function noted(reason, note)
  local line, log = reason:match('^([^\n]*)(.*)$')
  return line .. note .. log
end

local function give_up(id, reason)
  redis.call('XADD', dead_key(field(id, 'queue')), 'MAXLEN', '~', DEAD_LETTERS_KEPT, '*', 'job_id', id,
    'attempt', field(id, 'attempt'), 'reason', reason)
  finish(id, 'FAILED', reason)
end

-- Crashes of one fingerprint come again and again: the second is the last.
local function requeue_crashed(id, reason, fingerprint)
  local crashes = redis.call('HINCRBY', job_key(id), 'crashes', 1)
  local is_same = fingerprint and fingerprint ~= '' and fingerprint == field(id, 'crash_fingerprint')
  redis.call('HSET', job_key(id), 'crash_fingerprint', fingerprint or '')
  if crashes < tonumber(field(id, 'max_attempts')) and not is_same then return make_pending(id, reason) end
  give_up(id, noted(reason, '; tried ' .. (crashes == 1 and 'once' or crashes .. ' times without progress')))
end

-- What came from outside spends none of the job's attempts: after the first time it pauses, longer each time.
local function requeue_interrupted(id, reason)
  local times = redis.call('HINCRBY', job_key(id), 'interruptions', 1)
  if times >= INTERRUPTIONS then
    return give_up(id, noted(reason, '; interrupted ' .. times .. ' times without progress'))
  end
  if times == 1 then return make_pending(id, reason) end
  local pause_ms = math.min(FIRST_PAUSE_MS * 2 ^ (times - 2), LONGEST_PAUSE_MS)
  make_pending(id, noted(reason, string.format('; the next attempt begins in %d s', pause_ms / 1000)))
  redis.call('HSET', job_key(id), 'not_before_ms', string.format('%d', now_ms + pause_ms))
end

-- Take a running job back for another attempt. `how` it ended: drained, crashed or interrupted.
local function requeue(id, how, reason, fingerprint)
  redis.call('ZREM', leases, id)
  if field(id, 'cancel_requested') == '1' then return finish(id, 'CANCELLED', CANCELLED) end
  if how == 'crashed' then return requeue_crashed(id, reason, fingerprint) end
  if how == 'interrupted' then return requeue_interrupted(id, reason) end
  make_pending(id, '')
end

-- Let a job wait for those of its dependencies that have not succeeded, or for a worker.
local function wait_or_start(id, waiting, reason)
  for _, dependency in ipairs(waiting) do redis.call('SADD', dependents_key(dependency), id) end
  if #waiting == 0 then return make_pending(id, reason) end
  redis.call('SADD', waiting_key(field(id, 'queue')), id)
  enter(id, 'WAITING', reason)
end

-- Write a job that does not exist yet. `waiting` lists the dependencies that have not succeeded.
local function insert(request, waiting)
  local id = request.job_id
  local create_time = request.create_time or now_s
  -- Microseconds of creation, made unique: pages of the list never skip or repeat a job.
  local order = math.floor(tonumber(create_time) * 1e6)
  while redis.call('ZCOUNT', jobs, order, order) > 0 do order = order + 1 end
  order = string.format('%.0f', order)
  redis.call('HSET', job_key(id), 'job_id', id, 'request_id', request.request_id, 'kind', request.kind,
    'queue', request.queue, 'spec', request.spec, 'digest', request.digest, 'display_name', request.display_name,
    'depends_on', request.depends_on_json, 'waiting_for', #waiting, 'attempt', request.attempt, 'crashes', 0,
    'max_attempts', request.max_attempts, 'create_time', create_time, 'order', order, 'resumes', request.resumes,
    'submitted_by', request.submitted_by, 'metadata', request.metadata_json, 'needs', request.needs_json, 'format', request.format)
  redis.call('HDEL', reserved, id)
  redis.call('ZADD', jobs, order, id)
  wait_or_start(id, waiting, '')
end
