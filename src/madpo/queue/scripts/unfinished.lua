-- How many jobs of a caller are not over; changes nothing. ARGV: its name, then all queues.

local count = 0
local function add(ids)
  for _, id in ipairs(ids) do
    if field(id, 'submitted_by') == ARGV[1] then count = count + 1 end
  end
end

add(redis.call('ZRANGE', leases, 0, -1))
for index = 2, #ARGV do
  add(redis.call('ZRANGE', pending_key(ARGV[index]), 0, -1))
  add(redis.call('SMEMBERS', waiting_key(ARGV[index])))
end
return { 'unfinished', count }
