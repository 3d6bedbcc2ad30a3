"""A log with a reporter behind it."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from reporting_support import System


@pytest.fixture
def system(engine: sa.Engine, tmp_path: Path) -> System:
    """Nothing is logged yet."""
    return System(engine, tmp_path / "files")
