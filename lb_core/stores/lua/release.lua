-- Give slots back. A slot that is not in the ledger is passed over, so repeating does nothing.
-- KEYS  1 counts: zset, endpoint -> slots. 2 own ledger: hash, slot -> endpoint
-- ARGV  slots
-- Gives how many were held
redis.call('ZCARD', KEYS[1]) -- a key of the wrong type fails here, before anything is written
local released = 0
for _, slot in ipairs(ARGV) do
  local endpoint = redis.call('HGET', KEYS[2], slot)
  if endpoint then
    redis.call('HDEL', KEYS[2], slot) -- first: after it, a full memory refuses nothing more to this script
    if tonumber(redis.call('ZINCRBY', KEYS[1], -1, endpoint)) <= 0 then redis.call('ZREM', KEYS[1], endpoint) end
    released = released + 1
  end
end
return released
