-- Charge runs of one lease and put their events into the outbox. What settle.lua does for one task,
-- with the sums written once.
-- KEYS: account, hold of the lease, holds of the customer, outbox, then each done that a mark is of
-- ARGV: lease id, time in ms to remember marks, then for each run: position of its done in KEYS, its
--       mark, the amount promised, the number of lines, then for each line: sku, amount asked,
--       metered_at in ms, event
-- Reply: epoch, then for each run: '1' if it was settled before, the number of lines told, then for
--       each of them: amount, shortfall
local account_key, hold_key, holds_key, out_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local lease_id, remember_ms = ARGV[1], ARGV[2]
local FIRST_RUN, FIRST_DONE, RUN, LINE = 3, 5, 4, 4
local hold = read_hash(hold_key)
local account = read_account(account_key)
local is_open = hold and hold.state == 'held'
local lease_is_counted = is_open and account and hold.period_start_ms == account.period_start_ms
local epoch = account and account.epoch or '0'
local left_of_lease = is_open and tonumber(hold.held) or 0
local available = account and account.available or math.huge
local taken, settled, spent, lefts = 0, 0, {}, {}
local answer = { epoch }

local function count(sku, amount)
  spent[sku] = (spent[sku] or 0) + amount
  spent['*'] = (spent['*'] or 0) + amount
end

-- What the budgets leave, with what was counted since: they are read once, and written at the end.
local function left_of(sku)
  if not lefts[sku] then
    lefts[sku] = { left_of_budgets(account, sku) }
  end
  return math.min(lefts[sku][1] - (spent['*'] or 0), lefts[sku][2] - (spent[sku] or 0))
end

-- Whether a line counts into the account's period: as its lease did, or without one by its instant.
local function counts(metered_ms)
  if is_open or not account then
    return lease_is_counted
  end
  return metered_ms >= tonumber(account.period_start_ms) and metered_ms < account.period_end_ms
end

-- One run, from its lines on; `promised` is taken out of the lease.
local function charge(first, lines, promised)
  left_of_lease, taken = left_of_lease - promised, taken + promised
  if lease_is_counted then
    count(hold.sku, 0 - promised)
  end
  -- What was promised is charged even where late usage has taken the balance below zero.
  local room, charged = promised + math.max(available, 0), 0
  available = available + promised
  for n = 0, lines - 1 do
    local at = first + n * LINE
    local sku, asked, metered_ms, event = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]),
      ARGV[at + 3]
    local amount = math.min(asked, room)
    if counts(metered_ms) then
      amount = math.min(amount, math.max(promised, left_of(sku), 0))
      count(sku, amount)
    end
    promised = math.max(promised - amount, 0)
    room, charged = room - amount, charged + amount
    put_out(out_key, event, amount, asked - amount, epoch)
    answer[#answer + 1] = whole(amount)
    answer[#answer + 1] = whole(asked - amount)
  end
  available, settled = available - charged, settled + charged
end

local at = FIRST_RUN
while at <= #ARGV do
  local done, mark, promised, lines = tonumber(ARGV[at]), ARGV[at + 1], tonumber(ARGV[at + 2]),
    tonumber(ARGV[at + 3])
  if redis.call('SADD', KEYS[done], mark) == 0 then
    answer[#answer + 1] = '1'
    answer[#answer + 1] = '0'
  else
    answer[#answer + 1] = '0'
    answer[#answer + 1] = whole(lines)
    charge(at + RUN, lines, math.min(promised, left_of_lease))
  end
  at = at + RUN + lines * LINE
end

for i = FIRST_DONE, #KEYS do
  redis.call('PEXPIRE', KEYS[i], remember_ms)
end
if taken > 0 then
  redis.call('HINCRBY', hold_key, 'held', whole(0 - taken))
  redis.call('HSET', holds_key, lease_id, hold.period_start_ms .. '|' .. whole(left_of_lease) .. '|' .. hold.sku)
end
if account then
  redis.call('HINCRBY', account_key, 'held', whole(0 - taken))
  redis.call('HINCRBY', account_key, 'settled', whole(settled))
  for name, amount in pairs(spent) do
    if amount ~= 0 then
      redis.call('HINCRBY', account_key, 'spent:' .. name, whole(amount))
    end
  end
end
return answer
