-- Take back jobs whose lease ran out, as crashes. ARGV: how many at most.

local answer = { 'reaped' }
for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now_ms, 'LIMIT', 0, ARGV[1])) do
  requeue(id, 'worker ' .. field(id, 'worker_id') .. ' stopped renewing its lease')
  answer[#answer + 1] = redis.call('HGETALL', job_key(id))
end
return answer
