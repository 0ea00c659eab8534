-- Extend the lease. ARGV: job_id, attempt, worker_id, lease_ms.

local id = ARGV[1]
if not owns(id, ARGV[2], ARGV[3]) then return stale(id) end
redis.call('ZADD', leases, now_ms + ARGV[4], id)
return { 'renewed', field(id, 'cancel_requested') or '0' }
