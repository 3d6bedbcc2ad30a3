"""Redis ends a balance's month by its own clock, so here the tests' clock stands at the present."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest


@pytest.fixture
def now() -> datetime:
    """The instant at which ``clock`` stands."""
    return datetime.now(UTC).replace(second=0, microsecond=0)
