"""By COPY or by the statement that drops duplicates: the same rows, and nothing lost in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ordinary import ordinary_events
from support import make_event

from billing.core.usage_event import FIELDS, UsageEvent
from billing.usage_log.log_writer import BatchResult, LogWriter

MakeWriter = Callable[[], LogWriter]
Wait = Callable[[], None]

RENAMED = {"customer": "customer_id", "sku": "sku_id"}
events_of_the_catalogue = ordinary_events(
    st.sampled_from(["acme", "globex"]), st.sampled_from(["page-capture", "deep-search"])
)


def row_of(engine: sa.Engine, event: UsageEvent) -> dict[str, Any]:
    query = sa.text("SELECT * FROM usage_events WHERE id = :id")
    with engine.connect() as connection:
        return dict(connection.execute(query, {"id": event.id}).mappings().one())


def is_the_row_of(row: dict[str, Any], event: UsageEvent) -> None:
    for name in FIELDS:
        assert row.pop(RENAMED.get(name, name)) == getattr(event, name), name
    assert bytes(row.pop("fingerprint")) == event.fingerprint()
    assert set(row) == {"logged_at"}


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
    ],  # one log for all: it only grows
)
@given(
    batch=st.lists(events_of_the_catalogue, max_size=6, unique_by=lambda event: event.id),
    by_copy=st.booleans(),
)
def test_every_column_is_what_the_event_says_whichever_way_it_went(
    batch: list[UsageEvent], by_copy: bool, make_writer: MakeWriter, engine: sa.Engine
) -> None:
    writer = make_writer()
    writer._row_insert._without_copy = 0 if by_copy else 1
    told = writer.write([event.to_wire() for event in batch])
    assert told.inserted + told.duplicates == len(batch)
    if told.inserted == len(batch):
        for event in batch:
            is_the_row_of(row_of(engine, event), event)


def test_an_ordinary_batch_is_copied(
    writer: LogWriter, engine: sa.Engine, somebody_waits: Wait
) -> None:
    running = sa.text(
        "SELECT query FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with ThreadPoolExecutor(1) as pool, engine.connect() as holder, engine.connect() as other:
        lock = holder.begin()
        holder.execute(sa.text("LOCK TABLE usage_events IN SHARE MODE"))
        told = pool.submit(writer.write, [make_event().to_wire() for _ in range(3)])
        somebody_waits()
        (query,) = other.execute(running).scalars()
        lock.rollback()
        assert told.result(timeout=10).inserted == 3
    assert query.startswith("COPY usage_events")


@pytest.fixture
def logged_by_another(engine: sa.Engine) -> Iterator[Callable[[UsageEvent], sa.Transaction]]:
    """Logs an event in a transaction that is left open."""
    with engine.connect() as connection:

        def log(event: UsageEvent) -> sa.Transaction:
            transaction = connection.begin()
            values = {RENAMED.get(name, name): getattr(event, name) for name in FIELDS}
            table = sa.Table("usage_events", sa.MetaData(), autoload_with=engine)
            values |= {"outcome": event.outcome.value, "fingerprint": event.fingerprint()}
            connection.execute(table.insert().values(values))
            return transaction

        yield log


def test_what_another_consumer_logs_in_between_is_a_duplicate_and_its_neighbours_are_logged(
    logged_by_another: Callable[[UsageEvent], sa.Transaction],
    make_writer: MakeWriter,
    somebody_waits: Wait,
    rollups_are_exact: Callable[[], None],
    engine: sa.Engine,
) -> None:
    event, neighbours = make_event(amount_microcredits=0), [make_event() for _ in range(3)]
    writer = make_writer()
    with ThreadPoolExecutor(1) as pool:
        other = logged_by_another(event)
        bodies = [each.to_wire() for each in (neighbours[0], event, event, *neighbours[1:])]
        told = pool.submit(writer.write, bodies)
        somebody_waits()
        other.commit()
        assert told.result(timeout=10) == BatchResult(3, 2, {}, frozenset())
    # Where one id came to two consumers at once more will, and a failed COPY leaves dead rows.
    assert writer._row_insert._without_copy > 0
    assert writer.write([each.to_wire() for each in neighbours]).duplicates == 3
    with engine.begin() as connection:
        # The other consumer of this test did not add up what it logged.
        connection.execute(
            sa.text(
                "UPDATE usage_hourly SET events = events + 1, quantity = quantity + :quantity"
                " WHERE customer_id = :customer"
            ),
            {"quantity": event.quantity, "customer": event.customer},
        )
    rollups_are_exact()


def test_a_lost_connection_within_copy_is_an_error_like_any_other_and_the_writer_goes_on(
    writer: LogWriter, engine: sa.Engine, somebody_waits: Wait, logged: Callable[[], int]
) -> None:
    body = make_event().to_wire()
    end = sa.text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'COPY%'"
    )
    with ThreadPoolExecutor(1) as pool, engine.connect() as holder, engine.connect() as killer:
        lock = holder.begin()
        holder.execute(sa.text("LOCK TABLE usage_events IN SHARE MODE"))
        told = pool.submit(writer.write, [body])
        somebody_waits()
        assert killer.execute(end).scalars().all() == [True]
        with pytest.raises(sa.exc.DBAPIError):
            told.result(timeout=10)
        lock.rollback()
    assert logged() == 0
    assert writer.write([body]).inserted == 1
