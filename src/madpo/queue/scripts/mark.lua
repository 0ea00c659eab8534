-- A name for all that is kept here: whoever finds another one than before knows that everything was lost meanwhile. ARGV: the
-- name to give where there is none.

redis.call('HSETNX', marked, 'name', ARGV[1])
return { 'mark', redis.call('HGET', marked, 'name') }
