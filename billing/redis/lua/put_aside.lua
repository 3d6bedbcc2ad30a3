-- Moves an entry that is not an event out of the outbox, once, whoever sees it first.
-- KEYS[1]: the outbox of a shard. KEYS[2]: the stream of unreadable entries, same shard.
-- ARGV[1]: the entry's id. ARGV[2..]: its fields and what was wrong, name and value in turn.
-- Returns 1 where it was moved, 0 where it was gone already.
if redis.call('XDEL', KEYS[1], ARGV[1]) == 0 then
  return 0
end
redis.call('XADD', KEYS[2], '*', unpack(ARGV, 2))
return 1
