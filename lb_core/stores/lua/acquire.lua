-- Take a slot for one request by the rule of placement.py. For a slot that is held it changes nothing: a call that was
-- given up may arrive over a lost connection, after hold.lua has told what became of it. Nobody reads its answer then.
-- KEYS  1 counts: zset, endpoint -> slots. 2 own ledger: hash, slot -> endpoint. 3 owners: zset, owner -> expiry, ms
-- ARGV  1 owner, 2 slot, 3 lease in ms, 4 tie, 5 limit of all endpoints or '', 6 number of tiers, the size of each,
--       then all names; then, unless all endpoints are plain, as many weights, virtual loads and limits ('' is none)
-- Gives {endpoint or '' when all are full or it was held, tier from 0, 1 if the owner was unknown, counts before}
local slot, tie, tiers, total = ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[6]), 0
local everywhere, base = tonumber(ARGV[5]) or math.huge, 6 + tiers
for t = 1, tiers do total = total + tonumber(ARGV[6 + t]) end

local counts = redis.call('ZMSCORE', KEYS[1], unpack(ARGV, base + 1, base + total))
local fresh = redis.call('ZSCORE', KEYS[3], ARGV[1]) and 0 or 1
if redis.call('HGET', KEYS[2], slot) then return {'', 0, fresh, counts} end

local function weight(at) return tonumber(ARGV[base + total + at]) or 1 end
local function weighted_pick(tied)
  local sum, equal, last = 0, true, tied[#tied]
  for _, at in ipairs(tied) do sum, equal = sum + weight(at), equal and weight(at) == weight(last) end
  if equal then return tied[1 + math.floor(tie * #tied)] end
  local remaining = tie * sum
  for _, at in ipairs(tied) do
    remaining = remaining - weight(at)
    if remaining < 0 then return at end
  end
  return last
end
local at = 0
for t = 1, tiers do
  local least, tied = math.huge, {}
  for _ = 1, tonumber(ARGV[6 + t]) do
    at = at + 1
    local count = tonumber(counts[at]) or 0
    if count < everywhere and count < (tonumber(ARGV[base + 3 * total + at]) or math.huge) then
      local load = (count + (tonumber(ARGV[base + 2 * total + at]) or 0)) / weight(at)
      if load < least then least, tied = load, {at} elseif load == least then tied[#tied + 1] = at end
    end
  end
  if tied[1] then
    local endpoint = ARGV[base + weighted_pick(tied)]
    redis.call('HSET', KEYS[2], slot, endpoint) -- refused when memory is full: then nothing is written
    if redis.call('ZINCRBY', KEYS[1], 1, endpoint) == '1' then redis.call('EXPIRE', KEYS[1], 3600) end
    if redis.call('HLEN', KEYS[2]) == 1 then redis.call('EXPIRE', KEYS[2], 3600) end
    if fresh == 1 then
      redis.call('ZADD', KEYS[3], (redis.call('TIME')[1] + 1) * 1000 + ARGV[3], ARGV[1])
      redis.call('EXPIRE', KEYS[3], 3600)
    end
    return {endpoint, t - 1, fresh, counts}
  end
end
return {'', 0, fresh, counts}
