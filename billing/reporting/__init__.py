"""Aggregated usage on its way to a billing provider: what is due, what was sent, what was read back."""
