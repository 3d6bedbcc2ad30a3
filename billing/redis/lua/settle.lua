-- End a hold, charge its lines and put their events into the outbox.
-- KEYS: account, hold, open, holds of the customer, outbox, and where leases settle tasks of this
--       SKU: done
-- ARGV: customer, task id, time in ms to remember the record, the task's mark in done, then for each
--       line: sku, line, amount asked, metered_at in ms, event
-- Reply: outcome, epoch, then for each line: line, amount, shortfall
local account_key, hold_key, open_key, holds_key, out_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local customer, task_id, remember_ms, done_key, mark = ARGV[1], ARGV[2], ARGV[3], KEYS[6], ARGV[4]
local FIRST, STEP = 5, 5
local hold = read_hash(hold_key)

if hold and hold.state == 'settled' then
  local answer = { 'exists', hold.epoch }
  for n = 1, tonumber(hold.lines) do
    answer[#answer + 1] = hold['line' .. n]
    answer[#answer + 1] = hold['amount' .. n]
    answer[#answer + 1] = hold['shortfall' .. n]
  end
  return answer
end

local account = read_account(account_key)
local is_open = hold and hold.state == 'held'
if done_key and redis.call('SADD', done_key, mark) == 0 then
  -- A lease settled this task: the figures are in its event.
  if is_open then
    close_hold(account, hold, open_key, holds_key, task_id)
    redis.call('HSET', hold_key, 'state', 'released', 'cause', 'settled by a lease')
    redis.call('PEXPIRE', hold_key, remember_ms)
  end
  return { 'exists', '0' }
elseif done_key then
  redis.call('PEXPIRE', done_key, remember_ms)
end
local outcome, epoch, room = 'uncounted', '0', math.huge
if account then
  outcome, epoch = is_open and 'settled' or 'without_hold', account.epoch
  -- What was held was promised: a balance below zero does not take it back.
  room = (is_open and tonumber(hold.held) or 0) + math.max(account.available, 0)
end

-- Whether a line counts into the spent of the account's period: as its hold did, or without one by
-- its own instant.
local function counts(metered_ms)
  if not account then
    return false
  end
  if is_open then
    return hold.period_start_ms == account.period_start_ms
  end
  return metered_ms >= tonumber(account.period_start_ms) and metered_ms < account.period_end_ms
end

-- What was held was admitted under the budgets of that moment and stays promised.
local promised = is_open and tonumber(hold.held) or 0

if is_open then
  close_hold(account, hold, open_key, holds_key, task_id)
end

local answer, record, total, lines = { outcome, epoch }, {}, 0, 0
for i = FIRST, #ARGV, STEP do
  local sku, line, asked, metered_ms, event = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]),
    tonumber(ARGV[i + 3]), ARGV[i + 4]
  local amount = math.min(asked, room)
  if counts(metered_ms) then
    -- Read line by line, because each line before it took its part.
    amount = math.min(amount, math.max(promised, math.min(left_of_budgets(account, sku)), 0))
    count_spent(account, sku, amount)
  end
  local shortfall = asked - amount
  promised = math.max(promised - amount, 0)
  room, total, lines = room - amount, total + amount, lines + 1
  put_out(out_key, event, amount, shortfall, epoch)
  local figures = { 'line' .. lines, line, 'amount' .. lines, whole(amount), 'shortfall' .. lines,
    whole(shortfall) }
  for _, figure in ipairs(figures) do
    record[#record + 1] = figure
  end
  answer[#answer + 1] = line
  answer[#answer + 1] = whole(amount)
  answer[#answer + 1] = whole(shortfall)
end

if account then
  redis.call('HINCRBY', account_key, 'settled', whole(total))
end
if not is_open then
  -- An admission of nothing, which settles at once.
  redis.call('HSET', hold_key, 'admission', whole((hold and tonumber(hold.admission) or 0) + 1),
    'customer', customer, 'sku', ARGV[FIRST] or '', 'held', '0', 'expires_ms', '0',
    'period_start_ms', account and account.period_start_ms or '0')
end
redis.call('HSET', hold_key, 'state', 'settled', 'cause', '', 'epoch', epoch, 'lines', whole(lines),
  unpack(record))
redis.call('PEXPIRE', hold_key, remember_ms)
return answer
