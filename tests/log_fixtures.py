"""Fixtures of tests that write the log: a catalogue, writers as the writer role, a log with seals.

``conftest.py`` of a folder imports those that it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from archiving import Attic
from sealing import Bench
from support import add_customer, add_sku, eventually

from billing.core.clock import ManualClock
from billing.postgres.engines import writer_engine
from billing.usage_log.log_writer import LogWriter

MAX_AGE = timedelta(days=90)
MAX_AHEAD = timedelta(seconds=300)

MakeWriter = Callable[[], LogWriter]


@pytest.fixture
def catalogue(engine: sa.Engine) -> None:
    """Customers acme, globex and initech; SKUs page-capture and deep-search."""
    for customer in ("acme", "globex", "initech"):
        add_customer(engine, customer)
    for sku in ("page-capture", "deep-search"):
        add_sku(engine, sku)


@pytest.fixture
def make_writer(database_url: str, clock: ManualClock, catalogue: None) -> Iterator[MakeWriter]:
    """Makes writers, each with connections of its own, as consumers have."""
    del catalogue
    engines: list[sa.Engine] = []

    def make() -> LogWriter:
        engines.append(writer_engine(database_url))
        return LogWriter(
            engines[-1], clock=clock, max_age=MAX_AGE, max_ahead=MAX_AHEAD, currency="USD"
        )

    yield make
    for engine in engines:
        engine.dispose()


@pytest.fixture
def writer(make_writer: MakeWriter) -> LogWriter:
    """One writer."""
    return make_writer()


@pytest.fixture
def writers(make_writer: MakeWriter) -> MakeWriter:
    """Makes more writers; for tests that have one already."""
    return make_writer


@pytest.fixture
def bench(engine: sa.Engine, writer: LogWriter, now: datetime) -> Bench:
    """One log with its seals."""
    return Bench(engine, writer, now)


@pytest.fixture
def attic(bench: Bench, tmp_path: Path) -> Attic:
    """A log with an old month, and a folder for archives."""
    return Attic(bench, tmp_path / "archive")


@pytest.fixture
def somebody_waits(engine: sa.Engine) -> Callable[[], None]:
    """Returns once a connection to the test's database waits for a lock."""
    query = sa.text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )

    def waiting() -> bool:
        with engine.connect() as connection:
            return bool(connection.execute(query).scalar_one())

    def wait() -> None:
        eventually(waiting, message="somebody waits for a lock")

    return wait
