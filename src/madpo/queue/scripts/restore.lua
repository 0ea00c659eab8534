-- Write back a job that Redis lost; one that exists stays as it is. ARGV: the request as JSON, with state, reason,
-- result, attempt and create_time. Jobs may come in any order: an unknown dependency is waited for.

local request = cjson.decode(ARGV[1])
local id = request.job_id
if field(id, 'digest') then return job_reply(id) end

local waiting, ended = {}, nil
if not TERMINAL[request.state] then
  for _, dependency in ipairs(request.depends_on) do
    local state = field(dependency, 'state')
    if state == 'FAILED' or state == 'CANCELLED' then
      ended = dependency
    elseif state ~= 'SUCCEEDED' then
      waiting[#waiting + 1] = dependency
    end
  end
end
insert(request, waiting)
if TERMINAL[request.state] then
  finish(id, request.state, request.reason, request.result)
elseif ended then
  finish(id, 'FAILED', 'dependency ' .. ended .. ' did not succeed')
end
return job_reply(id)
