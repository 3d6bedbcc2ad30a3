"""Servers and a local Stripe for developers; nothing of the product imports them."""
