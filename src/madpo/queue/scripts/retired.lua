-- Jobs that are about to be deleted, each with its mark, which is another each time it is retired; changes nothing.

return { 'retired', unpack(redis.call('HGETALL', retired)) }
