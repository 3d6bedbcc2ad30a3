-- Give a hold back.
-- KEYS: account, hold, open, holds of the customer, outbox
-- ARGV: customer, task id, time in ms to remember the record, cause, '1' if the cause is final,
--       event ('' for none)
-- Reply: outcome
local account_key, hold_key, open_key, holds_key, out_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local customer, task_id, remember_ms = ARGV[1], ARGV[2], ARGV[3]
local cause, final, event = ARGV[4], ARGV[5] == '1', ARGV[6]
local hold = read_hash(hold_key)

if hold and hold.state == 'held' then
  local account = read_account(account_key)
  close_hold(account, hold, open_key, holds_key, task_id)
  redis.call('HSET', hold_key, 'state', 'released', 'cause', cause)
  if final then
    redis.call('HSET', hold_key, 'final', '1')
  end
  redis.call('PEXPIRE', hold_key, remember_ms)
  if event ~= '' then
    put_out(out_key, event, 0, 0, account and account.epoch or '0')
  end
  return 'released'
end

local was_admitted = hold and hold.admission ~= '0'
if was_admitted and (hold.state == 'settled' or not final or hold.cause == cause) then
  return 'ended_before'
end
if not final then
  return 'nothing'
end
-- No hold is open, and none may be: the mark stays beside how the last admission ended, if any did.
if not hold then
  redis.call('HSET', hold_key, 'state', 'released', 'admission', '0', 'customer', customer, 'sku', '',
    'held', '0', 'cause', cause, 'expires_ms', '0', 'period_start_ms', '0', 'epoch', '0')
end
redis.call('HSET', hold_key, 'final', '1')
redis.call('PEXPIRE', hold_key, remember_ms)
return 'tombstone'
