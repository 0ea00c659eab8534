-- Append events. ARGV: job_id, attempt, worker_id, token, then type and data of each event. The token names the call.

local id, token = ARGV[1], ARGV[4]
if not owns(id, ARGV[2], ARGV[3]) then return stale(id) end
if field(id, 'published') == token then return { 'published' } end
for i = 5, #ARGV, 2 do
  local kind, data = ARGV[i], ARGV[i + 1]
  emit(id, kind, data)
  if kind == 'progress' then redis.call('HSET', job_key(id), 'progress', data) end
  if kind == 'checkpoint' then redis.call('HSET', job_key(id), 'crashes', 0, 'crash_fingerprint', '', 'interruptions', 0) end
end
redis.call('HSET', job_key(id), 'published', token)
return { 'published' }
