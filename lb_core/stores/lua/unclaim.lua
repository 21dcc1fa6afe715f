-- Give a claim back, if it is still one's own.
-- KEYS  1 claim: string, its owner
-- ARGV  1 owner
-- Gives 1 if it was given back
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
