"""Stripe's events: invoices, rejected usage, deleted customers, paid checkouts."""
