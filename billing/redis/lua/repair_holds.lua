-- Make a customer's holds agree with their records, and what is held with the holds.
-- KEYS: account, holds of the customer, open, then the record of each named hold
-- ARGV: customer, then the task id of each
-- Reply: for each hold that was repaired: the fault, task id, amount; at last 'held', before, after
local account_key, holds_key, open_key = KEYS[1], KEYS[2], KEYS[3]
local customer = ARGV[1]
local faults, account = {}, read_account(account_key)

local function amount_of(entry)
  return entry and string.match(entry, '^%d+|(%d+)|') or '0'
end

for n = 4, #KEYS do
  local task_id = ARGV[n - 2]
  local member = customer .. '|' .. task_id
  local hold = read_hash(KEYS[n])
  local entry = redis.call('HGET', holds_key, task_id)
  local due_ms = redis.call('ZSCORE', open_key, member)
  if not hold or hold.state ~= 'held' then
    -- Nothing stands behind it: its credits were locked away for nobody.
    if entry or due_ms then
      redis.call('HDEL', holds_key, task_id)
      redis.call('ZREM', open_key, member)
      if entry and account then
        local start_ms, amount, sku = string.match(entry, '^(%d+)|(%d+)|(.*)$')
        if start_ms == account.period_start_ms then
          count_spent(account, sku, 0 - amount)
        end
      end
      faults[#faults + 1] = { 'orphan', task_id, amount_of(entry) }
    end
  else
    if not due_ms then
      -- No sweep would ever have found it.
      redis.call('ZADD', open_key, hold.expires_ms, member)
      faults[#faults + 1] = { 'unswept', task_id, hold.held }
    end
    local should = hold.period_start_ms .. '|' .. hold.held .. '|' .. hold.sku
    if entry ~= should then
      redis.call('HSET', holds_key, task_id, should)
      faults[#faults + 1] = { 'uncounted', task_id, hold.held }
    end
  end
end

local held, leases = 0, 0
for task_id, entry in pairs(read_hash(holds_key) or {}) do
  held = held + tonumber(amount_of(entry))
  leases = leases + (string.sub(task_id, 1, 6) == 'lease:' and 1 or 0)
end
if account then
  -- It decides only how large the next lease is.
  redis.call('HSET', account_key, 'leases', whole(leases))
end
local before = redis.call('HGET', account_key, 'held')
if before and tonumber(before) ~= held then
  redis.call('HSET', account_key, 'held', whole(held))
  faults[#faults + 1] = { 'held', before, whole(held) }
end
return faults
