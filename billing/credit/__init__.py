"""Credits given: grants."""
