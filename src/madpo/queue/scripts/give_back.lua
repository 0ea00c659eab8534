-- Return a running job for another attempt. ARGV: job_id, attempt, worker_id, how it ended (drained, crashed or
-- interrupted), reason, fingerprint.

local id, attempt, worker_id = ARGV[1], ARGV[2], ARGV[3]
if repeated(id, attempt, worker_id, 'give_back') then return job_reply(id) end
if not owns(id, attempt, worker_id) then return stale(id) end
redis.call('HSET', job_key(id), 'ended_by', 'give_back')
requeue(id, ARGV[4], ARGV[5], ARGV[6])
return job_reply(id)
