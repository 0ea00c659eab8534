-- Take a job that is over out of use, so that what it left can be removed: nobody can wait for it or resume it any more.
-- ARGV: job_id, and all queues.

local id = ARGV[1]
local state = field(id, 'state')
if not state then return { 'unknown' } end
if not TERMINAL[state] then return { 'not_over', state } end

-- Whoever waited for it is on its way since it succeeded, but may not have read yet what it left.
local function find_user(ids)
  for _, user in ipairs(ids) do
    for _, dependency in ipairs(cjson.decode(field(user, 'depends_on'))) do
      if dependency == id then return user end
    end
  end
end

local user = find_user(redis.call('ZRANGE', leases, 0, -1))
for i = 2, #ARGV do
  user = user or find_user(redis.call('ZRANGE', pending_key(ARGV[i]), 0, -1))
  user = user or find_user(redis.call('SMEMBERS', waiting_key(ARGV[i])))
end
if user then return { 'in_use', user, field(user, 'state') } end
redis.call('HSET', job_key(id), 'retired', '1')
redis.call('HSET', retired, id, now_s)
return job_reply(id)
