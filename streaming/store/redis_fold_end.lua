-- The end of a fold: the base is as of the last commit. KEYS: last, folding, parts, base, stream, a key per dropped part.
-- ARGV: commit id, what folding must be ('' for a fold without pieces), commits to keep, the base's commit id ('' for
-- any), names of the dropped parts. Returns as redis_fold.lua does, and {base's commit id} where it is another.
local last = redis.call('GET', KEYS[1])
if not last then return false end
local id = string.sub(last, 1, 16)
if id ~= ARGV[1] then return {id} end
if ARGV[2] ~= '' and redis.call('GET', KEYS[2]) ~= ARGV[2] then return 0 end
local base = string.sub(redis.call('GET', KEYS[4]) or '', 1, 16)
if ARGV[4] ~= '' and base ~= ARGV[4] then
    -- Where somebody else has folded the same commit, our pieces are as theirs: no fold is under way.
    if base == id then redis.call('DEL', KEYS[2]) end
    return {base}
end
for i = 6, #KEYS do
    redis.call('UNLINK', KEYS[i])
    redis.call('HDEL', KEYS[3], ARGV[i - 1])
end
redis.call('SET', KEYS[4], last)
redis.call('DEL', KEYS[2])
redis.call('XTRIM', KEYS[5], 'MAXLEN', ARGV[3])
return 1
