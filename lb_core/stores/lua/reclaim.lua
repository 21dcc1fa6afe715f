-- Hold a claim for longer, if it is still one's own.
-- KEYS  1 claim: string, its owner
-- ARGV  1 owner, 2 milliseconds
-- Gives 1 if it is held
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
