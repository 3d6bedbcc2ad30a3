#!lua
-- Put before the text of every verb when it is loaded. The line above makes the server refuse the
-- whole script when it is out of memory (never half of it), and any key of another slot.
--
-- Amounts are integers up to 2^53, which a Lua number (a double) holds exactly; sums are compared by
-- subtraction, because the sum of two amounts may be past 2^53 and their difference cannot. Every
-- number is written through `whole`, since Lua would write large ones with an exponent.

local function whole(number)
  return string.format('%.0f', number + 0) -- "+ 0" makes a negative zero a plain one
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- A hash as a table, or nil where there is none.
local function read_hash(key)
  local flat = redis.call('HGETALL', key)
  if #flat == 0 then
    return nil
  end
  local fields = {}
  for i = 1, #flat, 2 do
    fields[flat[i]] = flat[i + 1]
  end
  return fields
end

-- What the verbs need of an account, or nil where the balance is unknown.
local function read_account(key)
  local found = redis.call('HMGET', key, 'epoch', 'granted', 'held', 'settled', 'period_start_ms',
    'period_end_ms', 'suspended')
  if not found[1] then
    return nil
  end
  return {
    key = key,
    epoch = found[1],
    available = tonumber(found[2]) - tonumber(found[4]) - tonumber(found[3]),
    period_start_ms = found[5],
    period_end_ms = tonumber(found[6]),
    suspended = found[7] == '1',
  }
end

-- Count an amount (negative: take it out) into what is spent in the account's period.
local function count_spent(account, sku, amount)
  if amount ~= 0 then
    redis.call('HINCRBY', account.key, 'spent:' .. sku, whole(amount))
    redis.call('HINCRBY', account.key, 'spent:*', whole(amount))
  end
end

-- Take an open hold out of what is open and, where there is an account, out of its figures.
local function close_hold(account, hold, open_key, holds_key, task_id)
  redis.call('ZREM', open_key, hold.customer .. '|' .. task_id)
  redis.call('HDEL', holds_key, task_id)
  if account then
    redis.call('HINCRBY', account.key, 'held', whole(0 - hold.held))
    if hold.number then -- it is a lease
      redis.call('HINCRBY', account.key, 'leases', -1)
    end
    if hold.period_start_ms == account.period_start_ms then
      count_spent(account, hold.sku, 0 - hold.held)
    end
  end
end

-- Put an event into the outbox, with the figures that were decided.
local function put_out(out_key, event, amount, shortfall, epoch)
  redis.call('XADD', out_key, '*', 'e', event, 'a', whole(amount), 's', whole(shortfall), 'p', epoch)
end
