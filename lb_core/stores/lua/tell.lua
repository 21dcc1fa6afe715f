-- Tell the other balancers what became of an endpoint: 'out' for so long, or 'in'. Drop what is of no interest any more.
-- KEYS  1 news: hash, endpoint -> 'at until owner state reason', times in ms
-- ARGV  1 endpoint, 2 owner, 3 'out' or 'in', 4 ms that the ejection lasts, 5 reason, 6 ms after which news are old
-- Gives nothing
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local told = redis.call('HGETALL', KEYS[1])
for at = 1, #told, 2 do
  local ended = tonumber(string.match(told[at + 1], '^%d+ (%d+) ')) or 0
  if ended < now - ARGV[6] then redis.call('HDEL', KEYS[1], told[at]) end
end
local text = string.format('%.0f %.0f %s %s %s', now, now + ARGV[4], ARGV[2], ARGV[3], ARGV[5])
redis.call('HSET', KEYS[1], ARGV[1], text)
redis.call('EXPIRE', KEYS[1], 3600)
