"""Redis against log, rollups against log: the invariants, in code."""
