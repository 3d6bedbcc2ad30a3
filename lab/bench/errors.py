"""What can go wrong with a benchmark itself."""

from __future__ import annotations

from billing.core.errors import WeighbridgeError


class BenchError(WeighbridgeError):
    """The benchmark cannot go on; nothing is reported."""
