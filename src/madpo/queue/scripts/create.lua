-- Create a job, once per request id. ARGV: the request as JSON.

local request = cjson.decode(ARGV[1])
local digest = field(request.job_id, 'digest')
if digest then
  if digest ~= request.digest then return { 'other_spec' } end
  if field(request.job_id, 'retired') then return { 'retired' } end
  return job_reply(request.job_id)
end

local waiting = {}
for _, dependency in ipairs(request.depends_on) do
  local state = field(dependency, 'state')
  if not state or field(dependency, 'retired') then return { 'unknown_dependency', dependency } end
  if state == 'FAILED' or state == 'CANCELLED' then return { 'ended_dependency', dependency, state } end
  if state ~= 'SUCCEEDED' then waiting[#waiting + 1] = dependency end
end
insert(request, waiting)
return job_reply(request.job_id)
