-- Take a retired job into use again: it turned out to be needed. ARGV: job_id.

redis.call('HDEL', job_key(ARGV[1]), 'retired')
redis.call('HDEL', retired, ARGV[1])
return { 'reinstated' }
