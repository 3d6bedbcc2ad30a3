"""Several consumers with overlapping batches: no deadlock, no double row, exact rollups."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text
from support import NOW, make_event

from billing.core.usage_event import DeadReason, Outcome, UsageEvent, denied_line, failed_line
from billing.usage_log.log_writer import BatchResult, LogWriter

MakeWriter = Callable[[], LogWriter]


def some_events(rng: random.Random, count: int) -> list[UsageEvent]:
    return [
        make_event(
            task_id=f"task-{number}",
            customer=rng.choice(["acme", "globex", "initech"]),
            sku=rng.choice(["page-capture", "deep-search"]),
            subject=rng.choice([None, "a", "b", "c"]),
            amount_microcredits=rng.randrange(1_000_000),
            quantity=rng.randrange(9),
            metered_at=NOW - timedelta(minutes=rng.randrange(5_000)),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("seed", [1, 2])
def test_three_writers_with_shuffled_overlapping_batches_do_not_deadlock_and_count_once(
    seed: int,
    make_writer: MakeWriter,
    logged: Callable[[], int],
    rollups_are_exact: Callable[[], None],
) -> None:
    rng = random.Random(seed)
    bodies = [event.to_wire() for event in some_events(rng, 900)]
    together = threading.Barrier(3)

    def consume(shuffled: list[bytes]) -> list[BatchResult]:
        writer = make_writer()
        together.wait(60)
        return [writer.write(shuffled[start : start + 90]) for start in range(0, 900, 90)]

    with ThreadPoolExecutor(3) as pool:
        told = list(pool.map(consume, [rng.sample(bodies, len(bodies)) for _ in range(3)]))
    results = [result for consumer in told for result in consumer]
    assert sum(result.inserted for result in results) == logged() == 900
    assert sum(result.duplicates for result in results) == 2 * 900
    rollups_are_exact()


def test_a_duplicate_waits_for_the_first_telling_and_takes_over_if_that_is_rolled_back(
    make_writer: MakeWriter,
    engine: Engine,
    logged: Callable[[], int],
    somebody_waits: Callable[[], None],
) -> None:
    event = make_event()
    with ThreadPoolExecutor(1) as pool, engine.connect() as connection:
        transaction = connection.begin()
        connection.execute(
            text(
                "INSERT INTO usage_events SELECT (jsonb_populate_record(NULL::usage_events,"
                " CAST(:row AS jsonb))).*"
            ),
            {"row": _row(event)},
        )
        second = pool.submit(make_writer().write, [event.to_wire()])
        somebody_waits()
        transaction.rollback()
        assert second.result(timeout=10).inserted == 1
    assert logged() == 1


def _row(event: UsageEvent) -> str:
    return (
        f'{{"id": "{event.id}", "customer_id": "acme", "sku_id": "s", "line": "s",'
        ' "outcome": "succeeded", "reason": "", "quantity": 1, "amount_microcredits": 1,'
        ' "shortfall_microcredits": 0, "held_microcredits": 0, "cost_micros": 0,'
        ' "currency": "USD", "dimensions": {}, "task_id": "t", "task_name": "", "attempt": 0,'
        ' "worker": "", "degraded": false, "quota_epoch": 0, "fingerprint": "\\\\x00",'
        f' "logged_at": "{NOW.isoformat()}"}}'
    )


@st.composite
def tellings(draw: st.DrawFn) -> bytes:
    """One telling of one of few facts, so that repeats and conflicts are common."""
    task = draw(st.integers(0, 7))
    sku = draw(st.sampled_from(["page-capture", "deep-search", "unknown"]))
    kind = draw(st.sampled_from(list(Outcome)))
    lines = {
        Outcome.SUCCEEDED: sku,
        Outcome.FAILED: failed_line(sku, 1),
        Outcome.DENIED: denied_line(sku, "budget_exceeded"),
    }
    event = make_event(
        task_id=f"task-{task}",
        sku=sku,
        line=lines[kind],
        outcome=kind,
        reason="" if kind is Outcome.SUCCEEDED else draw(st.sampled_from(["a", "b"])),
        customer=draw(st.sampled_from(["acme", "globex"])),
        amount_microcredits=0 if kind is Outcome.DENIED else draw(st.sampled_from([0, 1, 2**53])),
        quantity=draw(st.sampled_from([1, 2**53])),
        cost_micros=draw(st.sampled_from([0, 3])),
        subject=draw(st.sampled_from([None, "x", "y"])),
        quota_epoch=draw(st.integers(0, 1)),
        attempt=draw(st.sampled_from([0, 1, 2**40])),
        metered_at=NOW - timedelta(hours=draw(st.integers(0, 2)) * 24 * 14),
        finished_at=None,
    )
    return draw(st.sampled_from([event.to_wire(), event.to_wire(), b"{"]))


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
    ],  # one log for all: it only grows
)
@given(batches=st.lists(st.lists(tellings(), max_size=12), min_size=1, max_size=4))
def test_rollups_are_the_log_after_any_batches_and_every_message_is_accounted_for(
    batches: list[list[bytes]],
    writer: LogWriter,
    logged: Callable[[], int],
    rollups_are_exact: Callable[[], None],
) -> None:
    before = logged()
    inserted = 0
    for bodies in batches:
        told = writer.write(bodies)
        inserted += told.inserted
        assert told.inserted + told.duplicates + sum(told.dead.values()) == len(bodies)
        assert set(told.dead) <= {
            DeadReason.NOT_JSON,
            DeadReason.UNKNOWN_SKU,
            DeadReason.CONFLICT,
            DeadReason.REFUSED_BY_DATABASE,
        }
    assert logged() == before + inserted
    rollups_are_exact()
