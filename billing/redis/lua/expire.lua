-- Expire those of the named holds of one shard that are over time.
-- KEYS: open, then for each hold: account, hold, holds of the customer
-- ARGV: time in ms to remember the records, then for each hold: customer, task id
-- Reply: for each hold that was expired: customer, task id, and its record (names and values)
local open_key, remember_ms = KEYS[1], ARGV[1]
local now = now_ms()
local expired = {}

for n = 1, (#KEYS - 1) / 3 do
  local account_key, hold_key, holds_key = KEYS[3 * n - 1], KEYS[3 * n], KEYS[3 * n + 1]
  local customer, task_id = ARGV[2 * n], ARGV[2 * n + 1]
  -- The caller listed it a moment ago; it may have ended, or been renewed, since.
  local due_ms = redis.call('ZSCORE', open_key, customer .. '|' .. task_id)
  if due_ms and tonumber(due_ms) <= now then
    local hold = read_hash(hold_key)
    if hold then
      close_hold(read_account(account_key), hold, open_key, holds_key, task_id)
      redis.call('HSET', hold_key, 'state', 'expired')
      redis.call('PEXPIRE', hold_key, remember_ms)
      expired[#expired + 1] = { customer, task_id, redis.call('HGETALL', hold_key) }
    else
      -- Its record was deleted by hand: it must not keep the sweep from the others.
      redis.call('ZREM', open_key, customer .. '|' .. task_id)
      redis.call('HDEL', holds_key, task_id)
    end
  end
end
return expired
