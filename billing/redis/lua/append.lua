-- Put an event of amount 0 into the outbox.
-- KEYS: account, outbox
-- ARGV: event
-- Reply: the outbox entry's id
local epoch = redis.call('HGET', KEYS[1], 'epoch') or '0'
return redis.call('XADD', KEYS[2], '*', 'e', ARGV[1], 'a', '0', 's', '0', 'p', epoch)
