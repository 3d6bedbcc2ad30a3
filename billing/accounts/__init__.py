"""Who is billed: customers, their status, time zone and budgets."""
