"""The wheel of this checkout, an environment that has it, and empty databases."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from wheel_environment import ROOT, build_wheel, install

# These run on the installed wheel, by a Python of its own: test_on_the_wheel.py.
collect_ignore = ["on_the_wheel"]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that ``make dist`` has built, else one of this checkout."""
    given = os.environ.get("WEIGHBRIDGE_WHEEL")
    return Path(given) if given else build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def installed(wheel: Path) -> Path:
    """The ``bin`` of an environment with the wheel; kept under ``.local`` for the next session."""
    return install(wheel, ROOT / ".local" / "dist" / "venv")


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """A database that was never migrated."""
    name = f"wbtest_{int(time.time())}_{secrets.token_hex(4)}"
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        try:
            yield urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))
        finally:
            admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
