-- Take the oldest pending job that does not pause and that the worker can do. ARGV: queue, worker_id, token, lease_ms, and
-- the names of what the worker can do that not all can, as a JSON array. The token names the call: a repeated call gets the
-- job of the first. With nothing to take, answers where the bell stands, so that no ring is missed.

local queue, worker_id, token, lease_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local PAGE = 100
local token_key = root .. ':claim:' .. token
local claimed = redis.call('HMGET', token_key, 'job_id', 'attempt')
if claimed[1] and owns(claimed[1], claimed[2], worker_id) then return job_reply(claimed[1]) end

local abilities = {}
for _, name in ipairs(cjson.decode(ARGV[5])) do abilities[name] = true end

local function can_do(id)
  for _, name in ipairs(cjson.decode(field(id, 'needs') or '[]')) do
    if not abilities[name] then return false end
  end
  return true
end

local function oldest()
  local start = 0
  repeat
    local ids = redis.call('ZRANGE', pending_key(queue), start, start + PAGE - 1)
    for _, id in ipairs(ids) do
      if is_due(id) and can_do(id) then return id end
    end
    start = start + PAGE
  until #ids < PAGE
end

local id = oldest()
if not id then
  local last = redis.call('XREVRANGE', bell_key(queue), '+', '-', 'COUNT', 1)
  return { 'empty', last[1] and last[1][1] or '0-0' }
end

redis.call('ZREM', pending_key(queue), id)
local attempt = redis.call('HINCRBY', job_key(id), 'attempt', 1)
redis.call('HSET', job_key(id), 'worker_id', worker_id)
redis.call('HSETNX', job_key(id), 'start_time', now_s)
redis.call('HDEL', job_key(id), 'ended_by', 'not_before_ms')
hold(id, lease_ms)
enter(id, 'RUNNING', '')
redis.call('HSET', token_key, 'job_id', id, 'attempt', attempt)
redis.call('EXPIRE', token_key, 600)
return job_reply(id)
