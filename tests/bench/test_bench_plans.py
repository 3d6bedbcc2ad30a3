"""What PostgreSQL really reads, and what it waits for."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy as sa
from support import NOW, eventually

from billing.postgres.partitions import partition_name
from billing.usage_log.receipts import Receipts
from billing.usage_log.usage_queries import By, UsageQueries
from lab.bench.bulk import Shape, fill, months_before
from lab.bench.locks import LockSampler, deadlocks
from lab.bench.plans import read_by

pytestmark = pytest.mark.postgres

SHAPE = Shape(events=900, customers=5, months=months_before(NOW, 3))


def test_the_partitions_that_a_question_reads_are_those_it_needs(engine: sa.Engine) -> None:
    fill(engine, SHAPE, lambda _: None)
    receipts, usage, month = Receipts(engine), UsageQueries(engine), SHAPE.months[1]

    page = read_by(engine, lambda: receipts.lines("c00000", month, limit=100))
    totals = read_by(engine, lambda: usage.by("c00000", month, By.SKU))
    every = read_by(engine, lambda: _count(engine))

    assert set(page) == {partition_name(month.start)}
    assert totals == {}
    assert {partition_name(each.start) for each in SHAPE.months} <= set(every)
    assert sum(every.values()) == SHAPE.events


def _count(engine: sa.Engine) -> object:
    with engine.connect() as connection:
        return connection.execute(sa.text("SELECT count(*) FROM usage_events")).scalar_one()


def test_a_backend_that_waits_for_a_row_is_seen(engine: sa.Engine) -> None:
    change = sa.text("UPDATE customers SET name = name WHERE id = 'acme'")
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO customers (id, name) VALUES ('acme', 'Acme')"))
    sampler = LockSampler(engine)

    def wait() -> None:
        with engine.begin() as connection:
            connection.execute(change)

    waiting = threading.Thread(target=wait)
    with sampler:
        with engine.begin() as connection:
            connection.execute(change)
            waiting.start()
            eventually(lambda: sampler.waiting["transactionid"] >= 2)
        waiting.join(30)

    assert "transactionid" in sampler.told()
    assert sampler.active >= sampler.waiting["transactionid"]
    assert deadlocks(engine) == 0
    assert "0.0% of 0 looks" in LockSampler(engine).told()
