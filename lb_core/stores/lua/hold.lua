-- Make the ledger say that these slots are held at these endpoints; serves move and resync. Repeating changes nothing.
-- KEYS  1 counts: zset, endpoint -> slots. 2 own ledger: hash, slot -> endpoint. 3 owners: zset, owner -> expiry, ms
-- ARGV  1 owner, 2 lease in ms, 3 limit of the endpoint of a single pair or '', then pairs of slot and endpoint
-- Gives {how many slots were not as said, or -1 if the endpoint is full and nothing was written,
--        1 if the owner was unknown}
redis.call('ZCARD', KEYS[1]) -- a key of the wrong type fails here, before anything is written
local fresh, full = redis.call('ZSCORE', KEYS[3], ARGV[1]) and 0 or 1, tonumber(ARGV[3])
if full and (tonumber(redis.call('ZSCORE', KEYS[1], ARGV[5])) or 0) >= full
    and redis.call('HGET', KEYS[2], ARGV[4]) ~= ARGV[5] then
  return {-1, fresh}
end
if fresh == 1 then
  redis.call('ZADD', KEYS[3], (redis.call('TIME')[1] + 1) * 1000 + ARGV[2], ARGV[1])
end
local changed = 0
for at = 4, #ARGV, 2 do
  local slot, endpoint = ARGV[at], ARGV[at + 1]
  local before = redis.call('HGET', KEYS[2], slot)
  if before ~= endpoint then
    redis.call('HSET', KEYS[2], slot, endpoint)
    redis.call('ZINCRBY', KEYS[1], 1, endpoint)
    if before and tonumber(redis.call('ZINCRBY', KEYS[1], -1, before)) <= 0 then
      redis.call('ZREM', KEYS[1], before)
    end
    changed = changed + 1
  end
end
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, 3600) end
return {changed, fresh}
