-- Bring a job to where the store knows it to be: one that Redis lost is written back, one of which it lost the last
-- changes catches up. ARGV: the request as JSON, with state, reason, result, attempt, resumes and create_time. Jobs may
-- come in any order: an unknown dependency is waited for.

local request = cjson.decode(ARGV[1])
local id = request.job_id

-- What the store knows is never ahead of the queue, unless the queue was set back. Whoever ran the job then is stale.
local function catch_up(state)
  local resumes, attempt = tonumber(field(id, 'resumes') or '0'), tonumber(field(id, 'attempt'))
  local is_newer = tonumber(field(id, 'format') or '1') > request.format
  if is_newer or field(id, 'retired') or request.resumes < resumes then return end
  -- It was set back since it was looked at; whoever looks again sees that it is to be resumed.
  if TERMINAL[state] and not TERMINAL[request.state] and resumes < request.resumes then return end
  local is_behind = attempt < request.attempt or resumes < request.resumes
  redis.call('HSET', job_key(id), 'attempt', math.max(attempt, request.attempt), 'resumes', request.resumes)
  if TERMINAL[request.state] then
    if not TERMINAL[state] or resumes < request.resumes then
      -- A worker that is about to say the same is answered as if it had.
      redis.call('HSET', job_key(id), 'ended_by', request.state)
      finish(id, request.state, request.reason, request.result)
    end
  elseif state == 'RUNNING' and is_behind then
    requeue(id, 'drained')
  end
end

local state = field(id, 'state')
if state then
  catch_up(state)
  return job_reply(id)
end

local waiting, ended = {}, nil
if not TERMINAL[request.state] then
  for _, dependency in ipairs(request.depends_on) do
    local found = field(dependency, 'state')
    if found == 'FAILED' or found == 'CANCELLED' then
      ended = dependency
    elseif found ~= 'SUCCEEDED' then
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
