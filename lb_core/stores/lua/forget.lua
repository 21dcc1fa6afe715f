-- Note that an endpoint's cache is gone, and drop the notes that are too old to matter.
-- KEYS  1 forgotten: zset, endpoint -> when, µs. 2 forgets: string, when the last of them
-- ARGV  1 endpoint, 2 for how many seconds the note is needed
-- Gives nothing
local time = redis.call('TIME')
local last = tonumber(redis.call('GET', KEYS[2])) or 0
local now = math.max(time[1] * 1000000 + time[2], last + 1) -- later than all before, whatever the clock does
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2] * 1000000)) do
  redis.call('ZREM', KEYS[1], old)
end
local text = string.format('%.0f', now)
redis.call('ZADD', KEYS[1], text, ARGV[1])
redis.call('SET', KEYS[2], text)
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ARGV[2]) end
