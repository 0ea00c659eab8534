-- Take back jobs whose leases were not renewed since they were seen. ARGV: of each job its id, and the mark of its lease.

local answer = { 'reaped' }
for i = 1, #ARGV, 2 do
  local id = ARGV[i]
  if redis.call('ZSCORE', leases, id) and lease_mark(id) == ARGV[i + 1] then
    requeue(id, 'interrupted', 'worker ' .. field(id, 'worker_id') .. ' stopped renewing its lease')
    answer[#answer + 1] = redis.call('HGETALL', job_key(id))
  end
end
return answer
