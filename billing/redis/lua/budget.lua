-- The budget rule, for every verb that holds or charges: what the balance and the month's budgets
-- leave. An account without a budget is bounded by its balance alone.

-- What is left of the budget over all SKUs and of the SKU's own; endless where there is none.
local function left_of_budgets(account, sku)
  local found = redis.call('HMGET', account.key, 'limit:*', 'spent:*', 'limit:' .. sku, 'spent:' .. sku)
  local function left(limit, spent)
    return limit and tonumber(limit) - tonumber(spent or 0) or math.huge
  end
  return left(found[1], found[2]), left(found[3], found[4])
end

-- Why the account cannot bear `extra` more in all and `extra_of_sku` more of the SKU (nil: not
-- asked), and what is left of what is short; nil where it can. Budgets bound only what is counted in
-- the account's period.
local function refusal(account, sku, extra, extra_of_sku, counted)
  if extra and account.available < extra then
    return 'insufficient_credits', account.available
  end
  if not counted then
    return nil
  end
  local left_of_all, left_of_sku = left_of_budgets(account, sku)
  if extra and left_of_all < extra then
    return 'budget_exceeded', left_of_all
  end
  if extra_of_sku and left_of_sku < extra_of_sku then
    return 'sku_budget_exceeded', left_of_sku
  end
  return nil
end
