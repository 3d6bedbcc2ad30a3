-- Ends the lease of one shard of the outbox, if the asker has it.
-- KEYS[1]: the lease. ARGV[1]: who asks. Returns 1 where it was the asker's.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('DEL', KEYS[1])
