-- Make the counts what the ledgers add up to. While all works there is nothing to correct.
-- KEYS  1 counts: zset, endpoint -> slots. 2 owners: zset, owner -> expiry, ms. then every owner's ledger
-- ARGV  the owners, in the order of their ledgers
-- Gives how many endpoints were wrong; -1 when these are no longer all owners, and nothing is written
if redis.call('ZCARD', KEYS[2]) ~= #ARGV then return -1 end
for _, owner in ipairs(ARGV) do
  if not redis.call('ZSCORE', KEYS[2], owner) then return -1 end
end
local truth, wrong = {}, 0
for at = 3, #KEYS do
  for _, endpoint in ipairs(redis.call('HVALS', KEYS[at])) do truth[endpoint] = (truth[endpoint] or 0) + 1 end
end
local counts = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for at = 1, #counts, 2 do
  local endpoint = counts[at]
  if not truth[endpoint] then
    redis.call('ZREM', KEYS[1], endpoint)
    wrong = wrong + 1
  elseif truth[endpoint] == tonumber(counts[at + 1]) then
    truth[endpoint] = nil
  end
end
for endpoint, slots in pairs(truth) do
  redis.call('ZADD', KEYS[1], slots, endpoint)
  wrong = wrong + 1
end
redis.call('EXPIRE', KEYS[1], 3600)
return wrong
