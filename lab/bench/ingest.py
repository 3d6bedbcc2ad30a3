"""Suite ingest: ``LogWriter.write``, against a raw COPY of the same rows.

The writer gets messages as the consumer does: it decodes and checks each, drops duplicates, adds to
the rollups and commits. The baseline gets the very rows that the writer logged, already in COPY's
binary format, into a table with the same columns, checks, partitions and indexes, but without a
unique one: nothing is decoded, nothing is looked up, nothing is added up. It is the least that
storing these rows can cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from billing.container import Container
from billing.core.usage_event import UsageEvent
from billing.postgres.partitions import existing_partitions
from lab.bench.effort import Effort, Outcome
from lab.bench.errors import BenchError
from lab.bench.events import add_customers, spread_over
from lab.bench.ground import Ground, Say
from lab.bench.report import compare

NAME: Final = "ingest"
_CUSTOMERS: Final = 20
_TABLE: Final = "bench_copied"
_OUT: Final = "COPY (SELECT * FROM usage_events WHERE id = ANY(%s)) TO STDOUT (FORMAT binary)"
_IN: Final = f"COPY {_TABLE} FROM STDIN (FORMAT binary)"
_NOTE: Final = (
    "ingest: every event has a subject of its own, which is the dearest case for the rollups."
)

Batches = Sequence[Sequence[UsageEvent]]


def run(ground: Ground, effort: Effort, say: Say) -> Outcome:
    """Measure.

    Raises:
        BenchError: The writer did not log every event.
    """
    container = ground.container(ground.settings(NAME))
    customers = add_customers(container, NAME, _CUSTOMERS)
    with container.engine.begin() as connection:
        make_equal_table(connection)
    for size in effort.ingest_batches:
        _pair(container, _batches(container, customers, size // 5, 1))
    pairs: dict[int, list[tuple[float, float]]] = {size: [] for size in effort.ingest_batches}
    for number in range(effort.repetitions):
        say(f"repetition {number + 1} of {effort.repetitions}")
        for size, count in effort.ingest_batches.items():
            pairs[size].append(_pair(container, _batches(container, customers, size, count)))
    return Outcome(
        [
            compare(NAME, f"write, batches of {size:,}", "rows/s", "raw COPY", measured)
            for size, measured in pairs.items()
        ],
        [_NOTE],
    )


def _batches(container: Container, customers: Sequence[str], size: int, count: int) -> Batches:
    return [spread_over(customers, size, container.clock.now()) for _ in range(count)]


def _pair(container: Container, batches: Batches) -> tuple[float, float]:
    """Rows a second of the writer, then of COPY."""
    rows = sum(len(batch) for batch in batches)
    messages = [[event.to_wire() for event in batch] for batch in batches]
    began = perf_counter()
    inserted = sum(container.writer.write(bodies).inserted for bodies in messages)
    written = perf_counter() - began
    if inserted != rows:
        raise BenchError(f"the writer logged {inserted} of {rows} events")
    copies = [read_rows(container.engine, [event.id for event in batch]) for batch in batches]
    began = perf_counter()
    for copy in copies:
        store_rows(container.engine, copy)
    return rows / written, rows / (perf_counter() - began)


def read_rows(engine: sa.Engine, ids: list[UUID]) -> bytes:
    """The logged rows of these ids, as COPY takes them."""
    with engine.connect() as connection:
        cursor = _cursor(connection)
        with cursor, cursor.copy(_OUT, [ids]) as copy:
            return b"".join(bytes(part) for part in copy)


def store_rows(engine: sa.Engine, rows: bytes) -> None:
    """COPY rows into the table without a unique index, in a transaction of its own."""
    with engine.begin() as connection:
        cursor = _cursor(connection)
        with cursor, cursor.copy(_IN) as copy:
            copy.write(rows)


def _cursor(connection: sa.Connection) -> Any:  # noqa: ANN401 - psycopg's, behind SQLAlchemy's
    return connection.connection.cursor()


def make_equal_table(connection: sa.Connection) -> None:
    """Make the table that COPY writes into, unless it is there."""
    if connection.execute(sa.text("SELECT to_regclass(:name)"), {"name": _TABLE}).scalar():
        return
    # Names and bounds are ours: there is nothing to quote.
    like = "LIKE usage_events INCLUDING DEFAULTS INCLUDING CONSTRAINTS"
    statements = [f"CREATE TABLE {_TABLE} ({like}) PARTITION BY RANGE (id)"]
    statements += [
        f"CREATE TABLE {_TABLE}_{number} PARTITION OF {_TABLE} "
        f"FOR VALUES FROM ('{partition.lowest}') TO ('{partition.end}')"
        for number, partition in enumerate(existing_partitions(connection))
    ]
    statements += [
        f"CREATE INDEX ON {_TABLE} ({columns})" for columns in ("id", "customer_id, id", "task_id")
    ]
    for statement in statements:
        connection.execute(sa.text(statement))
