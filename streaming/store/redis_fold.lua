-- One piece of a fold. KEYS: last, folding, parts, then a key per part.
-- ARGV: commit id, what folding must be ('' for the first piece), what it becomes, then name and value of each part.
-- Returns 1, 0 where a failover lost the pieces before, {last id} where another has committed, nil without a shard.
-- All that a piece writes is as of a commit that the stream has, so readers may see it before the fold has ended.
local last = redis.call('GET', KEYS[1])
if not last then return false end
local id = string.sub(last, 1, 16)
if id ~= ARGV[1] then return {id} end
if ARGV[2] ~= '' and redis.call('GET', KEYS[2]) ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[2], ARGV[3])
for i = 4, #KEYS do
    local value = ARGV[2 * i - 3]
    redis.call('SET', KEYS[i], value)
    redis.call('HSET', KEYS[3], ARGV[2 * i - 4], #value)
end
return 1
