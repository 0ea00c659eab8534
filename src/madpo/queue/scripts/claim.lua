-- Take the oldest pending job. ARGV: queue, worker_id, token, lease_ms. The token names the call: a repeated call gets
-- the job of the first. With nothing pending, answers where the bell stands, so that no ring is missed.

local queue, worker_id, token, lease_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local token_key = root .. ':claim:' .. token
local claimed = redis.call('HMGET', token_key, 'job_id', 'attempt')
if claimed[1] and owns(claimed[1], claimed[2], worker_id) then return job_reply(claimed[1]) end

local popped = redis.call('ZPOPMIN', pending_key(queue))
if not popped[1] then
  local last = redis.call('XREVRANGE', bell_key(queue), '+', '-', 'COUNT', 1)
  return { 'empty', last[1] and last[1][1] or '0-0' }
end

local id = popped[1]
local attempt = redis.call('HINCRBY', job_key(id), 'attempt', 1)
redis.call('HSET', job_key(id), 'worker_id', worker_id)
redis.call('HSETNX', job_key(id), 'start_time', now_s)
redis.call('HDEL', job_key(id), 'ended_by')
redis.call('ZADD', leases, now_ms + lease_ms, id)
enter(id, 'RUNNING', '')
redis.call('HSET', token_key, 'job_id', id, 'attempt', attempt)
redis.call('EXPIRE', token_key, 3600)
return job_reply(id)
