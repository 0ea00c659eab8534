-- How a queue stands; changes nothing. ARGV: queue. Jobs are kept by creation, so the one pending for longest is searched
-- for, among as many as take no time.

local queue = ARGV[1]
local SEARCHED = 1000

local oldest_s = 0
for _, id in ipairs(redis.call('ZRANGE', pending_key(queue), 0, SEARCHED - 1)) do
  oldest_s = math.max(oldest_s, tonumber(now_s) - tonumber(field(id, 'pending_time')))
end

local running = 0
for _, id in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
  if field(id, 'queue') == queue then running = running + 1 end
end

return { 'status', redis.call('ZCARD', pending_key(queue)), redis.call('SCARD', waiting_key(queue)), running,
  string.format('%.6f', oldest_s), redis.call('XLEN', dead_key(queue)) }
