-- End a running job. ARGV: job_id, attempt, worker_id, state, reason, result.

local id, attempt, worker_id, state = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if repeated(id, attempt, worker_id, state) then return job_reply(id) end
if not owns(id, attempt, worker_id) then return stale(id) end
redis.call('HSET', job_key(id), 'ended_by', state)
finish(id, state, state == 'CANCELLED' and CANCELLED or ARGV[5], ARGV[6])
return job_reply(id)
