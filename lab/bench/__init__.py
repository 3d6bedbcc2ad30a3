"""Benchmarks: what metering costs, each figure against a baseline of the same run."""
