-- Renew the lease of a living owner, and tell which other leases ran out.
-- KEYS  1 owners: zset, owner -> expiry, ms. 2 own ledger: hash, slot -> endpoint. 3 counts: zset, endpoint -> slots
-- ARGV  1 owner, 2 lease in ms
-- Gives {1 if the owner was known, slots in its ledger, {owners whose lease ran out}}
local time, lease = redis.call('TIME'), tonumber(ARGV[2])
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('ZSCORE', KEYS[1], ARGV[1]) and 1 or 0
local slots = redis.call('HLEN', KEYS[2])
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, 3600) end -- first: then a full memory cannot refuse ZADD
for _, owner in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], now + 3 * lease, '+inf')) do
  redis.call('ZADD', KEYS[1], now + lease, owner) -- the clock was set back
end
redis.call('ZADD', KEYS[1], now + lease, ARGV[1])
redis.call('EXPIRE', KEYS[1], 3600)
return {known, slots, redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)}
