-- Tell the other balancers what became of an endpoint: 'out' for so long, or 'in'.
-- KEYS  1 news: hash, endpoint -> 'at until owner state reason', times in ms
-- ARGV  1 endpoint, 2 owner, 3 'out' or 'in', 4 ms that the ejection lasts, 5 reason
-- Gives nothing
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local text = string.format('%.0f %.0f %s %s %s', now, now + ARGV[4], ARGV[2], ARGV[3], ARGV[5])
redis.call('HSET', KEYS[1], ARGV[1], text)
redis.call('EXPIRE', KEYS[1], 3600)
