"""What the benchmark sets for its own process is not left to the tests behind it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """`make bench` logs to standard error, which is another one in every test."""
    yield
    structlog.reset_defaults()
