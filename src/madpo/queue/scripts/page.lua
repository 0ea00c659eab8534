-- Jobs by creation, newest first; changes nothing. ARGV: behind which score ('+inf', or '(' and one), how many at most.
-- Each as JSON, an object without fields where it is gone: as a hash it would be some fifty replies.

local rows = redis.call('ZREVRANGEBYSCORE', jobs, ARGV[1], '-inf', 'WITHSCORES', 'LIMIT', 0, tonumber(ARGV[2]) + 1)
local found, last = { 'page', '' }, nil
for i = 1, #rows, 2 do
  if #found - 2 == tonumber(ARGV[2]) then
    found[2] = last
    break
  end
  local fields, hash = redis.call('HGETALL', job_key(rows[i])), {}
  for j = 1, #fields, 2 do hash[fields[j]] = fields[j + 1] end
  if #fields > 0 and hash.job_id == nil then hash.job_id = rows[i] end
  last = rows[i + 1]
  found[#found + 1] = cjson.encode(hash)
end
return found
