-- Takes or renews the lease of one shard of the outbox.
-- KEYS[1]: the lease. ARGV[1]: who asks. ARGV[2]: milliseconds it is to last from here.
-- Returns 1 where the asker has the lease, 0 where somebody else has it.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
