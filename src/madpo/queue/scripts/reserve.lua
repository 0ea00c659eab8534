-- Keep room for a job that is about to be created or resumed, if its caller may have one more that is not over. It is kept
-- until that is done, or for ttl_ms. ARGV: job_id, the caller's name, how many it may have, ttl_ms, then all queues.

local id, caller, limit, ttl_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local count = 0
local function add(ids)
  for _, each in ipairs(ids) do
    if each ~= id and (field(each, 'resumed_by') or field(each, 'submitted_by')) == caller then count = count + 1 end
  end
end

add(redis.call('ZRANGE', leases, 0, -1))
for index = 5, #ARGV do
  add(redis.call('ZRANGE', pending_key(ARGV[index]), 0, -1))
  add(redis.call('SMEMBERS', waiting_key(ARGV[index])))
end
local reservations = redis.call('HGETALL', reserved)
for i = 1, #reservations, 2 do
  local expiry_ms, by = reservations[i + 1]:match('^(%d+) (.*)$')
  if tonumber(expiry_ms) <= now_ms then
    redis.call('HDEL', reserved, reservations[i])
  elseif by == caller and reservations[i] ~= id then
    count = count + 1
  end
end
if count >= limit then return { 'no_room', count } end
redis.call('HSET', reserved, id, string.format('%d ', now_ms + ttl_ms) .. caller)
return { 'reserved' }
