"""A year of usage, loaded by COPY: what a question or a report meets once a platform has grown.

Events are spread evenly over the months, and unevenly over the customers: customer ``n`` of ``N``
has about as many as a platform's ``n``-th largest. Everything follows from the seed. Rollups are
summed up from the rows.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import sqlalchemy as sa

from billing.core.clock import to_ms
from billing.core.event_columns import NAMES
from billing.core.event_ids import lowest_id
from billing.core.periods import Period, month_of
from billing.postgres.partitions import partition_name
from lab.bench.ground import Say

SKUS: Final = ("capture", "search", "render")
PRICES: Final = (1_000_000, 5_000_000, 2_500_000)
SUBJECTS: Final = 50
"""Distinct pages of one customer."""
_BLOCK: Final = 20_000
_COLUMNS: Final = ", ".join(
    name for name in NAMES if name not in {"parent_id", "group_id", "logged_at"}
)
_ROLL_UP: Final = """
    INSERT INTO usage_hourly (customer_id, hour, sku_id, outcome, reason, events, quantity,
        amount_microcredits, shortfall_microcredits, cost_micros)
    SELECT customer_id, date_trunc('hour', started_at, 'UTC'), sku_id, outcome, reason, count(*),
        sum(quantity), sum(amount_microcredits), sum(shortfall_microcredits), sum(cost_micros)
    FROM {table} GROUP BY 1, 2, 3, 4, 5
"""
_COUNT_SUBJECTS: Final = """
    INSERT INTO usage_subject_counts (customer_id, sku_id, month, subjects)
    SELECT customer_id, sku_id, CAST(:month AS date), count(DISTINCT subject)
    FROM {table} GROUP BY 1, 2
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How much there is.

    ``months`` are whole UTC months, oldest first; a ``skew`` of 1 gives every customer as much.
    """

    events: int
    customers: int
    months: Sequence[Period]
    seed: int = 20_261_121
    skew: int = 3


def customer_name(number: int) -> str:
    """The id of a customer; 0 is the largest."""
    return f"c{number:05d}"


def months_before(now: datetime, count: int) -> list[Period]:
    """The last ``count`` whole UTC months before the one of ``now``, oldest first."""
    month = month_of(now)
    found: list[Period] = []
    for _ in range(count):
        month = month_of(month.start - timedelta(days=1))
        found.append(month)
    return found[::-1]


def fill(engine: sa.Engine, shape: Shape, say: Say) -> None:
    """Fill an empty, migrated database.

    Each month is loaded into a table of its own, gets its indexes and is attached: that is also how
    ``billing restore`` brings a month back.
    """
    with engine.begin() as connection:
        _add_catalogue(connection, shape)
    share = len(shape.months)
    for number, month in enumerate(shape.months):
        count = shape.events * (number + 1) // share - shape.events * number // share
        say(f"{month.label}: {count:,} events ({number + 1} of {share} months)")
        with engine.begin() as connection:
            _load(connection, shape, month, count, number)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        say("VACUUM ANALYZE")
        connection.execute(sa.text("VACUUM ANALYZE"))


def _add_catalogue(connection: sa.Connection, shape: Shape) -> None:
    connection.execute(
        sa.text("INSERT INTO skus (id, unit, pricing) VALUES (:id, 'page', 'fixed')"),
        [{"id": sku} for sku in SKUS],
    )
    connection.execute(
        sa.text("INSERT INTO prices VALUES (:id, '2020-01-01', :price)"),
        [{"id": sku, "price": price} for sku, price in zip(SKUS, PRICES, strict=True)],
    )
    names = [{"id": customer_name(number)} for number in range(shape.customers)]
    connection.execute(sa.text("INSERT INTO customers (id, name) VALUES (:id, :id)"), names)
    connection.execute(sa.text("INSERT INTO quota_fences (customer_id) VALUES (:id)"), names)


def _load(connection: sa.Connection, shape: Shape, month: Period, count: int, number: int) -> None:
    name = partition_name(month.start)
    table = f"bulk_{name}"
    # Names and bounds are made of digits by this module: there is nothing to quote.
    existing = f"ALTER TABLE usage_events DETACH PARTITION {name}; DROP TABLE {name}"
    if connection.execute(sa.text("SELECT to_regclass(:name)"), {"name": name}).scalar():
        connection.execute(sa.text(existing))
    connection.execute(
        sa.text(
            f"CREATE TABLE {table} (LIKE usage_events INCLUDING DEFAULTS INCLUDING CONSTRAINTS)"
        )
    )
    cursor = connection.connection.cursor()
    with cursor.copy(f"COPY {table} ({_COLUMNS}) FROM STDIN") as copy:  # type: ignore[attr-defined]
        for block in _blocks(shape, month, count, number):
            copy.write(block)
    connection.execute(sa.text(_ROLL_UP.format(table=table)))
    connection.execute(sa.text(_COUNT_SUBJECTS.format(table=table)), {"month": month.start})
    lowest, end = lowest_id(month.start), lowest_id(month.end)
    inside, bounds = (
        f"id >= '{lowest}' AND id < '{end}'",
        f"FOR VALUES FROM ('{lowest}') TO ('{end}')",
    )
    for statement in (
        f"ALTER TABLE {table} RENAME TO {name}",
        f"ALTER TABLE {name} ADD CONSTRAINT {name}_bounds CHECK ({inside})",
        f"ALTER TABLE usage_events ATTACH PARTITION {name} {bounds}",
        f"ALTER TABLE {name} DROP CONSTRAINT {name}_bounds",
    ):
        connection.execute(sa.text(statement))


def _blocks(shape: Shape, month: Period, count: int, number: int) -> Iterator[str]:
    """Rows in COPY's text format, in the order of their ids."""
    chance = random.Random(shape.seed + number)  # noqa: S311 - repeatable, not secret
    start, width = to_ms(month.start), to_ms(month.end) - to_ms(month.start)
    for first in range(0, count, _BLOCK):
        rows = range(first, min(first + _BLOCK, count))
        yield "".join([_row(shape, chance, start + width * row // count) for row in rows])


def _row(shape: Shape, chance: random.Random, at_ms: int) -> str:
    bits = chance.getrandbits(74)
    identifier = uuid.UUID(
        int=at_ms << 80 | 0x7 << 76 | (bits >> 62) << 64 | 0b10 << 62 | (bits & ((1 << 62) - 1))
    )
    customer = customer_name(int(shape.customers * chance.random() ** shape.skew))
    kind = bits % len(SKUS)
    task = f"{bits:032x}"
    denied = bits % 50 == 0
    outcome, reason, amount = (
        ("denied", "insufficient_credits", 0) if denied else ("succeeded", "", PRICES[kind])
    )
    seconds, milliseconds = divmod(at_ms, 1000)
    at = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{milliseconds:03d}+00"
    return (
        f"{identifier}\t{customer}\t{SKUS[kind]}\tuse:{SKUS[kind]}\t{outcome}\t{reason}\t1\t{amount}"
        f"\t0\t{amount}\t120\tUSD\thttps://example.com/pages/{bits % SUBJECTS}"
        f'\t{{"status": "200"}}\t{task}\tbulk.{SKUS[kind]}\t{task}\t0\tbulk@host\tf\t1\t{at}\t{at}'
        f"\t\\\\x{task}\n"
    )
