-- What live workers of a queue can do; changes nothing. ARGV: queue. Answers the JSON array of each worker.

local reply = { 'announced' }
for _, names in pairs(live_announcements(ARGV[1])) do
  if names then reply[#reply + 1] = names end
end
return reply
