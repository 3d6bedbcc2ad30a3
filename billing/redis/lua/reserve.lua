-- Hold an amount for a task, or say why not.
-- KEYS: account, hold, open, holds of the customer, and where leases settle tasks of this SKU: done
-- ARGV: customer, task id, sku, amount, time to live in ms, the task's mark in done
-- Reply: outcome, reason, admission, held, left
local account_key, hold_key, open_key, holds_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local customer, task_id, sku = ARGV[1], ARGV[2], ARGV[3]
local amount, ttl_ms = tonumber(ARGV[4]), tonumber(ARGV[5])
local now = now_ms()
local hold = read_hash(hold_key)
local account = read_account(account_key)

local function reply(outcome, reason, admission, held, left)
  return { outcome, reason, whole(admission), whole(held), whole(math.max(left, 0)) }
end

-- Write down what is open. The hold's period stays the one it was first counted in.
local function write_open(period_start_ms)
  local expires_ms = whole(now + ttl_ms)
  redis.call('HSET', hold_key, 'sku', sku, 'held', whole(amount), 'expires_ms', expires_ms)
  redis.call('ZADD', open_key, expires_ms, customer .. '|' .. task_id)
  redis.call('HSET', holds_key, task_id, period_start_ms .. '|' .. whole(amount) .. '|' .. sku)
end

local function answer_held()
  local held = tonumber(hold.held)
  if held == amount and hold.sku == sku then
    write_open(hold.period_start_ms)
    return reply('exists', '', hold.admission, amount, account and account.available or 0)
  end
  if not account then
    return reply('unknown_balance', '', 0, held, 0)
  end
  local extra = amount - held
  local counted = hold.period_start_ms == account.period_start_ms
  -- What shrinks always fits; a hold that moves to another SKU must fit that SKU's budget.
  local asked = extra > 0 and extra or nil
  local asked_of_sku = asked
  if hold.sku ~= sku then
    asked_of_sku = amount
  end
  local reason, left = refusal(account, sku, asked, asked_of_sku, counted)
  if reason then
    return reply('denied', reason, 0, held, left)
  end
  if counted then
    count_spent(account, hold.sku, 0 - held)
    count_spent(account, sku, amount)
  end
  redis.call('HINCRBY', account_key, 'held', whole(extra))
  write_open(hold.period_start_ms)
  return reply('adjusted', '', hold.admission, amount, account.available - extra)
end

local function admit()
  if not account or now >= account.period_end_ms then
    return reply('unknown_balance', '', 0, 0, 0)
  end
  if account.suspended then
    return reply('denied', 'customer_suspended', 0, 0, account.available)
  end
  local reason, left = refusal(account, sku, amount, amount, true)
  if reason then
    return reply('denied', reason, 0, 0, left)
  end
  local admission = (hold and tonumber(hold.admission) or 0) + 1
  redis.call('HINCRBY', account_key, 'held', whole(amount))
  count_spent(account, sku, amount)
  redis.call('HSET', hold_key, 'state', 'held', 'admission', whole(admission), 'customer', customer,
    'cause', '', 'period_start_ms', account.period_start_ms, 'epoch', account.epoch)
  redis.call('PERSIST', hold_key)
  write_open(account.period_start_ms)
  return reply('held', '', admission, amount, account.available - amount)
end

local available = account and account.available or 0
if KEYS[5] and redis.call('SISMEMBER', KEYS[5], ARGV[6]) == 1 then
  return reply('already_settled', '', hold and hold.admission or 0, 0, available)
elseif hold and hold.state == 'settled' then
  return reply('already_settled', '', hold.admission, 0, available)
elseif hold and hold.state == 'held' then
  return answer_held()
elseif hold and hold.final then
  return reply('denied', 'revoked', 0, 0, available)
end
return admit()
