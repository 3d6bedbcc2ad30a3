"""Billing providers behind one port: Stripe, the built-in ledger, and files for a finance team."""
