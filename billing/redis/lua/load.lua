-- Take over what PostgreSQL knows of an account, if it is newer than what is here.
-- KEYS: account, holds of the customer, born
-- ARGV: epoch, version, '1' if suspended, granted, settled ('-1': a state that can only sync), late,
--       period start in ms, period end in ms, '1' if there was usage, quarantine in ms,
--       the number of budgets, then name and limit of each, then name and amount of each spent
-- Reply: outcome
local account_key, holds_key, born_key = KEYS[1], KEYS[2], KEYS[3]
local epoch, version, suspended, granted = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local settled, late = tonumber(ARGV[5]), tonumber(ARGV[6])
local period_start_ms, period_end_ms = ARGV[7], ARGV[8]
local had_usage, quarantine_ms = ARGV[9] == '1', tonumber(ARGV[10])
local FIRST_BUDGET = 12
local LEASE_PREFIX = 'lease:'
local FIRST_SPENT = FIRST_BUDGET + 2 * tonumber(ARGV[11])
local sync_only = settled < 0
local now = now_ms()
local account = read_hash(account_key)

-- The sum of the customer's open holds, what is spent in the period with them in it, and how many of
-- them are leases.
local function recount()
  local held, spent, leases = 0, {}, 0
  for i = FIRST_SPENT, #ARGV, 2 do
    spent[ARGV[i]] = tonumber(ARGV[i + 1])
  end
  for task_id, entry in pairs(read_hash(holds_key) or {}) do
    local start_ms, amount, sku = string.match(entry, '^(%d+)|(%d+)|(.*)$')
    if string.sub(task_id, 1, #LEASE_PREFIX) == LEASE_PREFIX then
      leases = leases + 1
    end
    held = held + tonumber(amount)
    if start_ms == period_start_ms then
      spent[sku] = (spent[sku] or 0) + tonumber(amount)
      spent['*'] = (spent['*'] or 0) + tonumber(amount)
    end
  end
  return held, spent, leases
end

local function drop_fields(prefix)
  for name in pairs(account or {}) do
    if string.sub(name, 1, #prefix) == prefix then
      redis.call('HDEL', account_key, name)
    end
  end
end

-- What a newer version tells in any case.
local function write_terms()
  redis.call('HSET', account_key, 'version', whole(version), 'suspended', suspended,
    'granted', granted, 'late', whole(late))
  drop_fields('limit:')
  for i = FIRST_BUDGET, FIRST_SPENT - 1, 2 do
    redis.call('HSET', account_key, 'limit:' .. ARGV[i], ARGV[i + 1])
  end
end

local function write_period(spent)
  redis.call('HSET', account_key, 'period_start_ms', period_start_ms, 'period_end_ms', period_end_ms)
  drop_fields('spent:')
  for name, amount in pairs(spent) do
    redis.call('HSET', account_key, 'spent:' .. name, whole(amount))
  end
end

local function load_anew()
  local held, spent, leases = recount()
  redis.call('HSET', account_key, 'epoch', whole(epoch), 'held', whole(held),
    'settled', whole(settled + late), 'leases', whole(leases))
  write_terms()
  write_period(spent)
  return 'loaded'
end

local function sync()
  local moved = period_start_ms ~= account.period_start_ms or period_end_ms ~= account.period_end_ms
  local newer = version > tonumber(account.version)
  local stored_is_over = now >= tonumber(account.period_end_ms)
  -- A month ends without anybody bumping the version.
  local turns = version == tonumber(account.version) and moved and stored_is_over
    and now < tonumber(period_end_ms)
  if not newer and not turns then
    return 'stale'
  end
  if newer then
    redis.call('HINCRBY', account_key, 'settled', whole(late - tonumber(account.late)))
    write_terms()
  end
  -- A state read just before the month's end must not bring the old month back.
  if moved and now < tonumber(period_end_ms) then
    local _, spent = recount()
    write_period(spent)
  end
  return 'synced'
end

redis.call('SET', born_key, whole(now), 'NX')
if account and tonumber(account.epoch) > epoch then
  return 'stale'
elseif account and tonumber(account.epoch) == epoch then
  return sync()
elseif sync_only then
  -- The log's total of this epoch is not told, so nothing can be loaded from it. An account of an
  -- older epoch is behind the fence: forgotten, so that the next reserve has it rebuilt.
  redis.call('DEL', account_key)
  return 'stale'
elseif not account and had_usage and now < tonumber(redis.call('GET', born_key)) + quarantine_ms then
  return 'quarantined'
end
return load_anew()
