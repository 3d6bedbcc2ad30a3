-- Make a lease what is requested, as far as balance and budgets bear it. A lease is a hold with the
-- number of its last request, and what that one was granted.
-- KEYS: account, hold of the lease, open, holds of the customer
-- ARGV: customer, lease id, sku, number, amount to keep, wish, least, time to live in ms, time in ms to
--       remember one that was given back, the divisor of what is available
-- Reply: outcome, granted
local account_key, hold_key, open_key, holds_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local customer, lease_id, sku, number = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local keep, wish, least = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local ttl_ms, remember_ms, share = tonumber(ARGV[8]), ARGV[9], tonumber(ARGV[10])
local now = now_ms()
local hold = read_hash(hold_key)
local account = read_account(account_key)

local function reply(outcome, granted)
  return { outcome, whole(granted or 0) }
end

-- What this lease gets, or nil where that is too little to be of use; SHARE in
-- billing/core/credit_lease.py says why.
local function chunk_of(room, holders)
  if room < 0 then
    return nil
  end
  local parts = share * holders
  local chunk = math.min(wish, (room - math.fmod(room, parts)) / parts)
  return chunk >= least and chunk or nil
end

-- What balance and budgets leave, with what the lease holds now and gives up.
local function room_of(given_up)
  return math.min(account.available, left_of_budgets(account, sku)) + given_up
end

-- Hold so much from now on, of which `granted` is an answer to this request.
local function write(held, granted, period_start_ms)
  local change = held - (hold and tonumber(hold.held) or 0)
  local expires_ms = whole(now + ttl_ms)
  if account then
    redis.call('HINCRBY', account_key, 'held', whole(change))
    if period_start_ms == account.period_start_ms then
      count_spent(account, sku, change)
    end
    if not hold then
      redis.call('HINCRBY', account_key, 'leases', 1)
    end
  end
  redis.call('HSET', hold_key, 'held', whole(held), 'number', whole(number), 'granted',
    whole(granted), 'expires_ms', expires_ms)
  redis.call('ZADD', open_key, expires_ms, customer .. '|' .. lease_id)
  redis.call('HSET', holds_key, lease_id, period_start_ms .. '|' .. whole(held) .. '|' .. sku)
end

local function open()
  if not account or now >= account.period_end_ms then
    return reply('unknown_balance')
  end
  local leases = tonumber(redis.call('HGET', account_key, 'leases') or 0)
  local chunk = not account.suspended and chunk_of(room_of(0), leases + 1)
  if not chunk then
    return reply('scarce')
  end
  redis.call('HSET', hold_key, 'state', 'held', 'admission', '1', 'customer', customer, 'sku', sku,
    'cause', '', 'period_start_ms', account.period_start_ms, 'epoch', account.epoch)
  write(chunk, chunk, account.period_start_ms)
  return reply('granted', chunk)
end

local function change()
  local held = tonumber(hold.held)
  -- Never raised to what is to be kept: there are no credits for what is not held.
  local kept = math.min(keep, held)
  if wish == 0 and kept == 0 then
    close_hold(account, hold, open_key, holds_key, lease_id)
    redis.call('HSET', hold_key, 'state', 'released', 'cause', 'returned', 'number', whole(number),
      'granted', '0')
    redis.call('PEXPIRE', hold_key, remember_ms)
    return reply('granted')
  end
  local outcome, chunk = 'granted', 0
  if wish > 0 and (not account or now >= account.period_end_ms) then
    outcome = 'unknown_balance'
  elseif wish > 0 and hold.period_start_ms ~= account.period_start_ms then
    outcome = 'ended'
  elseif wish > 0 then
    local leases = math.max(tonumber(redis.call('HGET', account_key, 'leases') or 1), 1)
    chunk = not account.suspended and chunk_of(room_of(held - kept), leases) or nil
    if not chunk then
      outcome, chunk = 'scarce', 0
    end
  end
  write(kept + chunk, chunk, hold.period_start_ms)
  return reply(outcome, chunk)
end

local last = hold and tonumber(hold.number or 0) or 0
if hold and hold.state == 'held' and number == last then
  return reply('granted', tonumber(hold.granted))
elseif hold and hold.state == 'held' and number > last then
  return change()
elseif hold then
  return reply('ended')
elseif number > 1 then
  -- Lost, or given back before its opening arrived: which must not open it any more.
  redis.call('HSET', hold_key, 'state', 'released', 'admission', '0', 'customer', customer, 'sku', sku,
    'held', '0', 'cause', 'returned', 'expires_ms', '0', 'period_start_ms', '0', 'epoch', '0',
    'number', whole(number), 'granted', '0')
  redis.call('PEXPIRE', hold_key, remember_ms)
  return reply('ended')
end
return open()
