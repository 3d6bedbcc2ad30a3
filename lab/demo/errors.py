"""What stops the demo before its end."""

from __future__ import annotations

from billing.core.errors import WeighbridgeError


class DemoError(WeighbridgeError):
    """The demo cannot go on; the message says why and where to look."""
