-- Say what a worker of a queue can do. ARGV: queue, worker_id, for how many ms that holds, names as a JSON array.

local queue, worker_id, ttl_ms, names = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
for worker, announcement in pairs(live_announcements(queue)) do
  if not announcement then redis.call('HDEL', announced_key(queue), worker) end
end
redis.call('HSET', announced_key(queue), worker_id, string.format('%d ', now_ms + ttl_ms) .. names)
redis.call('PEXPIRE', announced_key(queue), math.max(ttl_ms, redis.call('PTTL', announced_key(queue))))
return { 'announced' }
