"""SKUs and their prices, customers and their budgets, grants."""
