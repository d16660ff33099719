-- Put, replace or drop the record of something kept in pieces. KEYS: kept, new pieces, old pieces.
-- ARGV: its name, the record that must be there ('' for none), the new record ('' to drop it), number of new pieces.
-- Returns 1, 0 where another record is there, -1 where a new piece is missing.
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
local new = tonumber(ARGV[4])
for i = 2, 1 + new do
    if redis.call('EXISTS', KEYS[i]) == 0 then return -1 end
end
for i = 2, 1 + new do redis.call('PERSIST', KEYS[i]) end
if ARGV[3] == '' then redis.call('HDEL', KEYS[1], ARGV[1]) else redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) end
for i = 2 + new, #KEYS do redis.call('UNLINK', KEYS[i]) end
return 1
