-- Remove a retired job. ARGV: job_id.

local id = ARGV[1]
if field(id, 'retired') then
  redis.call('ZREM', jobs, id)
  redis.call('HDEL', retired, id)
  redis.call('DEL', job_key(id), events_key(id), dependents_key(id))
end
return { 'forgotten' }
