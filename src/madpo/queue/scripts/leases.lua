-- All leases: of each the job, a mark that every renewal changes, and for how many ms it holds. Answers only while leases
-- could be renewed too, which a server that takes no writes refuses. Changes nothing.

redis.call('ZADD', leases, 'XX', 0, '')
local reply = { 'leases', now_s }
for _, id in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
  reply[#reply + 1] = { id, lease_mark(id), field(id, 'lease_ms') or '' }
end
return reply
