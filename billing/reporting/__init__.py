"""Aggregated usage on its way to a billing provider: what is due, sent, and read back."""
