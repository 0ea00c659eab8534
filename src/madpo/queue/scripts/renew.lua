-- Extend the lease. ARGV: job_id, attempt, worker_id, lease_ms.

local id = ARGV[1]
if not owns(id, ARGV[2], ARGV[3]) then return stale(id) end
hold(id, ARGV[4])
return { 'renewed', field(id, 'cancel_requested') or '0' }
