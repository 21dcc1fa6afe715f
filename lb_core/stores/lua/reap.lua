-- Give back what a dead owner held, a chunk at a time. Anybody may reap an owner whose lease ran out; it itself always.
-- KEYS  1 owners: zset, owner -> expiry, ms. 2 counts: zset, endpoint -> slots. 3 its ledger: hash, slot -> endpoint
-- ARGV  1 dead owner, 2 caller, 3 most slots at once
-- Gives {slots given back, slots left}; {0, 0} when it lives after all or is gone
if ARGV[1] ~= ARGV[2] then
  local expiry, time = redis.call('ZSCORE', KEYS[1], ARGV[1]), redis.call('TIME')
  if not expiry or tonumber(expiry) > time[1] * 1000 + math.floor(time[2] / 1000) then return {0, 0} end
end
redis.call('ZCARD', KEYS[2]) -- a key of the wrong type fails here, before anything is written
local chunk = redis.call('HRANDFIELD', KEYS[3], ARGV[3], 'WITHVALUES')
for at = 1, #chunk, 2 do
  redis.call('HDEL', KEYS[3], chunk[at])
  if tonumber(redis.call('ZINCRBY', KEYS[2], -1, chunk[at + 1])) <= 0 then
    redis.call('ZREM', KEYS[2], chunk[at + 1])
  end
end
local left = redis.call('HLEN', KEYS[3])
if left == 0 then redis.call('ZREM', KEYS[1], ARGV[1]) end
return {#chunk / 2, left}
