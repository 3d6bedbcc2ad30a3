"""A month of the log, hour by hour: its rows hashed to leaves, beside the recorded leaves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Protocol
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from billing.audit.row_diff import Record
from billing.audit.seal_chain import Leaves, Seal
from billing.audit.sealer import sealed_leaves, seals_of_hour, waiting_leaves
from billing.core.event_ids import hour_of, lowest_id
from billing.core.periods import Period
from billing.core.row_hash import COLUMNS, leaf_of
from billing.postgres.partitions import PARENT
from billing.usage_log.totals import Totals, totals_of

HOUR: Final = timedelta(hours=1)

Row = Mapping[str, Any]
"""Values of a row by the names of ``billing.core.row_hash.COLUMNS``."""

Bucket = tuple[str, str, str, str]
"""Customer, SKU, outcome, reason."""

_FETCHED: Final = 2_000
_LISTED: Final = ", ".join(COLUMNS)
# Names of tables are made by billing.postgres.partitions: there is nothing to quote.
_ROWS: Final = "SELECT {columns} FROM {table} WHERE id >= %s AND id < %s ORDER BY id"
_NAMED: Final = "SELECT {columns} FROM {table} WHERE id = ANY(:ids)"
_SUMS: Final = """
    SELECT customer_id, sku_id, outcome, reason, count(*), sum(quantity), sum(amount_microcredits),
        sum(shortfall_microcredits), sum(cost_micros)
    FROM {table} WHERE id >= :low AND id < :up_to GROUP BY 1, 2, 3, 4
"""
_NEXT: Final = """
    SELECT (SELECT id FROM {table} WHERE id >= :low AND id < :up_to ORDER BY id LIMIT 1),
        (SELECT min(hour) FROM log_seals WHERE hour >= :at AND hour < :end),
        (SELECT min(hour) FROM log_manifests WHERE hour >= :at AND hour < :end)
"""


@dataclass(frozen=True, slots=True)
class Hour:
    """One hour of a month, to be read before the next one is asked for.

    Attributes:
        start: Its start.
        rows: Id and leaf of each row, in the order of the ids.
        seals: The chain's.
        lists: Leaves under those seals, and of rows that wait for one.
    """

    start: datetime
    rows: Iterator[Record]
    seals: list[Seal]
    lists: list[Leaves]


class MonthOfLog(Protocol):
    """A month's rows, in the database or in an archive."""

    period: Period

    def faults(self) -> Iterator[str]:
        """Find faults of the files or tables as such, in words."""
        ...

    def hours(self) -> Iterator[Hour]:
        """Read every hour that has rows, seals or manifests, in their order."""
        ...

    def leaves(self, hour: datetime) -> list[Leaves]:
        """Read the leaves under the seals of an hour."""
        ...

    def named(self, ids: Collection[UUID]) -> dict[UUID, Row]:
        """Read the rows with these ids."""
        ...

    def sums(self, hour: datetime) -> dict[Bucket, Totals]:
        """Add up an hour's rows by bucket."""
        ...


Connect = Callable[[], AbstractContextManager[Connection]]


def snapshots(engine: Engine) -> Connect:
    """Make a factory of connections in read-only transactions with one snapshot each."""

    @contextmanager
    def connect() -> Iterator[Connection]:
        with engine.connect() as connection:
            connection.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            yield connection

    return connect


class LiveMonth:
    """A month in the database.

    A row and its manifest, a manifest's end and its seal: each comes in one transaction, so one
    snapshot per hour sees all or nothing, whatever is logged and sealed meanwhile.

    Args:
        period: The UTC month.
        connect: Of ``snapshots``; or the transaction that has just filled ``table``.
        table: The log, or a partition of it that need not be attached.
    """

    def __init__(self, period: Period, connect: Connect, *, table: str = PARENT) -> None:
        self.period = period
        self._connect = connect
        self._table = table

    def faults(self) -> Iterator[str]:
        """Find none: faults of tables show in their rows."""
        return iter(())

    def hours(self) -> Iterator[Hour]:
        """Read every hour that has rows, seals or manifests, in their order."""
        at: datetime | None = self.period.start
        while at is not None and at < self.period.end:
            with self._connect() as connection:
                start = self._next(connection, at)
                if start is not None:
                    yield self._read(connection, start)
            at = None if start is None else start + HOUR

    def _next(self, connection: Connection, at: datetime) -> datetime | None:
        limits = {
            "at": at,
            "end": self.period.end,
            "low": lowest_id(at),
            "up_to": lowest_id(self.period.end),
        }
        query = sa.text(_NEXT.format(table=self._table))
        identifier, *hours = connection.execute(query, limits).one()
        found = [hour_of(identifier)] if identifier else []
        return min([*found, *filter(None, hours)], default=None)

    def _read(self, connection: Connection, start: datetime) -> Hour:
        seals = seals_of_hour(connection, start)
        lists = sealed_leaves(connection, [seal.number for seal in seals])
        lists += waiting_leaves(connection, start)
        return Hour(start, self._leaves(connection, start), seals, lists)

    def _leaves(self, connection: Connection, start: datetime) -> Iterator[Record]:
        period = Period("hour", start, start + HOUR)
        for row in rows_of(connection, period, table=self._table):
            yield row["id"].bytes, leaf_of(row)

    def leaves(self, hour: datetime) -> list[Leaves]:
        """Read the leaves under the seals of an hour."""
        with self._connect() as connection:
            seals = seals_of_hour(connection, hour)
            return sealed_leaves(connection, [seal.number for seal in seals])

    def named(self, ids: Collection[UUID]) -> dict[UUID, Row]:
        """Read the rows with these ids."""
        query = sa.text(_NAMED.format(columns=_LISTED, table=self._table))
        with self._connect() as connection:
            rows = connection.execute(query, {"ids": list(ids)}).mappings()
            return {row["id"]: dict(row) for row in rows}

    def sums(self, hour: datetime) -> dict[Bucket, Totals]:
        """Add up an hour's rows by bucket."""
        query = sa.text(_SUMS.format(table=self._table))
        limits = {"low": lowest_id(hour), "up_to": lowest_id(hour + HOUR)}
        with self._connect() as connection:
            rows = connection.execute(query, limits).all()
        return {(row[0], row[1], row[2], row[3]): totals_of(row[4:]) for row in rows}


def rows_of(
    connection: Connection, period: Period, *, table: str = PARENT, order: str = ""
) -> Iterator[dict[str, Any]]:
    """Read the rows of a period, streamed by a cursor of the server.

    Args:
        connection: In a transaction; one cursor of this at a time.
        period: By ``metered_at``.
        table: The log, or a partition of it that need not be attached.
        order: Columns to order by before the id, each with a comma after it.
    """
    query = _ROWS.format(columns=_LISTED, table=table).replace("BY id", f"BY {order}id")
    # The driver's own cursor: SQLAlchemy's rows would take as long again as all the rest.
    driver: Any = connection.connection.driver_connection
    with driver.cursor(name="weighbridge_rows") as cursor:
        cursor.itersize = _FETCHED
        cursor.execute(query, [lowest_id(period.start), lowest_id(period.end)])
        for values in cursor:
            yield dict(zip(COLUMNS, values, strict=True))
