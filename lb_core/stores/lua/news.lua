-- What balancers have told of endpoints.
-- KEYS  1 news: hash, see tell.lua
-- Gives {now in ms, {endpoint, text, endpoint, text, ...}}
local time = redis.call('TIME')
return {string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)), redis.call('HGETALL', KEYS[1])}
