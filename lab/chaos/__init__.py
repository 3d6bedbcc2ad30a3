"""Chaos: a seeded nemesis against the real system under load, and the checker afterwards."""
