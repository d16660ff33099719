-- Append a commit if it follows the last one. KEYS: last, stream.
-- ARGV: id, after, head and log time (16 bytes), then fields and values of the entry.
-- Returns the entry's id, or {last id} where the commit does not follow, or nil where there is no such shard.
local last = redis.call('GET', KEYS[1])
if not last then return false end
local id = string.sub(last, 1, 16)
if id == ARGV[1] then return string.sub(last, 33) end
if id ~= ARGV[2] then return {id} end
local entry = redis.call('XADD', KEYS[2], '*', ARGV[4], ARGV[5], ARGV[6], ARGV[7])
redis.call('SET', KEYS[1], ARGV[1] .. ARGV[3] .. entry)
return entry
