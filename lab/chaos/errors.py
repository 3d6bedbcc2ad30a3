"""What can go wrong with a run itself, as opposed to what it finds."""

from __future__ import annotations

from billing.core.errors import WeighbridgeError


class ChaosError(WeighbridgeError):
    """The run cannot go on; says what it waited for or what is missing."""
