"""The year that questions are asked of."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from support import NOW

from billing.core.periods import month_of
from billing.postgres.partitions import existing_partitions, partition_name
from billing.usage_log.receipts import Receipts
from billing.usage_log.usage_queries import By, UsageQueries
from lab.bench.bulk import SKUS, Shape, fill, months_before

pytestmark = pytest.mark.postgres

SHAPE = Shape(events=900, customers=5, months=months_before(NOW, 3))


def test_months_before_are_whole_and_end_with_the_last_one() -> None:
    edges = [edge for month in SHAPE.months for edge in (month.start, month.end)]
    assert edges[-1] == month_of(NOW).start
    assert edges[1:-1:2] == edges[2::2]


def test_a_year_has_every_event_once_in_partitions_and_in_rollups(
    engine: sa.Engine,
) -> None:
    fill(engine, SHAPE, lambda _: None)
    with engine.connect() as connection:
        rows = connection.execute(
            sa.text("SELECT count(*), sum(amount_microcredits) FROM usage_events")
        ).one()
        rolled_up = connection.execute(
            sa.text("SELECT sum(events), sum(amount_microcredits) FROM usage_hourly")
        ).one()
        partitions = {partition.name for partition in existing_partitions(connection)}
    assert tuple(rows) == tuple(rolled_up)
    assert rows[0] == SHAPE.events
    assert {partition_name(month.start) for month in SHAPE.months} <= partitions
    month = SHAPE.months[1]
    lines = Receipts(engine).lines("c00000", month, limit=1000)
    by_sku = UsageQueries(engine).by("c00000", month, By.SKU)
    assert {row.key for row in by_sku} <= set(SKUS)
    assert sum(row.totals.amount_microcredits for row in by_sku) == sum(
        line.amount_microcredits for line in lines
    )
