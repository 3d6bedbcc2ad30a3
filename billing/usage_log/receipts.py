"""Receipts: the lines of the log, one by one, as a customer is shown them.

Months that were archived are read from their files (``billing.usage_log.archived_usage``), the
others from the database.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from billing.core.event_columns import LOGGED_AT, OF_EVENT
from billing.core.event_ids import lowest_id
from billing.core.periods import Period
from billing.core.usage_event import Outcome, UsageEvent
from billing.postgres.schema import usage_events
from billing.usage_log.archived_usage import (
    ArchivedUsage,
    NoArchivedUsage,
    read_with_stable_months,
    split_at_months,
)
from billing.usage_log.totals import Totals
from billing.usage_log.usage_queries import UsageQueries

_MOST: Final = 10_000


class ReceiptLine(UsageEvent, frozen=True, kw_only=True):
    """One logged event."""

    logged_at: datetime


_COLUMNS: Final = [usage_events.c[column.name] for column in (*OF_EVENT, LOGGED_AT)]


class Receipts:
    """Reads the log line by line.

    Args:
        engine: Any that may read the log.
        archived: Rows of archived months.
    """

    def __init__(self, engine: Engine, archived: ArchivedUsage | None = None) -> None:
        self._engine = engine
        self._archived: ArchivedUsage = archived or NoArchivedUsage()

    def lines(
        self, customer: str, period: Period, *, after_id: UUID | None = None, limit: int = 100
    ) -> list[ReceiptLine]:
        """A page of the customer's lines in the order of their ids, which is that of metering.

        Args:
            customer: Whose.
            period: Half-open, by ``metered_at``.
            after_id: The last id of the page before; None for the first page.
            limit: The most lines, up to 10,000.

        Raises:
            NotFound: The file of an archived month is not there.
            ArchiveUnreadableError: It cannot be read.
        """
        limit = min(limit, _MOST)

        def read(months: list[Period]) -> list[ReceiptLine]:
            found: list[ReceiptLine] = []
            for part, month in split_at_months(period, months):
                wanted = limit - len(found)
                if wanted and month is not None:
                    low, end = _range(part, after_id)
                    rows = self._archived.open(month).lines(customer, low, end, limit=wanted)
                    found += map(_line, rows)
                elif wanted:
                    query = page_query(customer, part, after_id=after_id, limit=wanted)
                    found += self._read(query)
            return found

        return read_with_stable_months(self._archived, read)

    def latest(self, customer: str, *, limit: int = 10) -> list[ReceiptLine]:
        """The customer's newest lines by metering, newest first.

        Args:
            customer: Whose.
            limit: The most lines, up to 10,000.

        Raises:
            NotFound: The file of an archived month is not there.
            ArchiveUnreadableError: It cannot be read.
        """
        limit = min(limit, _MOST)
        query = (
            sa.select(*_COLUMNS)
            .where(usage_events.c.customer_id == customer)
            .order_by(usage_events.c.id.desc())
        )

        def read(months: list[Period]) -> list[ReceiptLine]:
            found = self._read(query.where(*map(_outside, months)).limit(limit))
            for month in reversed(months):
                low, end = _range(month, None)
                wanted = limit - sum(line.id >= end for line in found)
                if wanted > 0:
                    rows = self._archived.open(month).lines(
                        customer, low, end, limit=wanted, newest_first=True
                    )
                    found += map(_line, rows)
            return sorted(found, key=lambda line: line.id, reverse=True)[:limit]

        return read_with_stable_months(self._archived, read)

    def for_task(self, task_id: str) -> list[ReceiptLine]:
        """Every line of a task, denials and failures among them, in the order they were logged.

        Only what is in the database: see ``archived_task``.
        """
        query = (
            sa.select(*_COLUMNS)
            .where(usage_events.c.task_id == task_id)
            .order_by(usage_events.c.logged_at, usage_events.c.id)
        )
        return self._read(query)

    def archived_task(self, task_id: str) -> list[ReceiptLine]:
        """The same of a task of an archived month. Reads through the archives, newest first.

        All lines of a task are of one instant, so the first month that has any has all.

        Raises:
            NotFound: The file of an archived month is not there.
            ArchiveUnreadableError: It cannot be read.
        """
        for month in reversed(self._archived.months()):
            lines = [_line(row) for row in self._archived.open(month).task(task_id)]
            if lines:
                return sorted(lines, key=lambda line: (line.logged_at, line.id))
        return []

    def totals(self, customer: str, period: Period) -> Totals:
        """What all pages of ``lines`` add up to, from the rollups."""
        return UsageQueries(self._engine, self._archived).total(customer, period)

    def _read(self, query: sa.Select[Any]) -> list[ReceiptLine]:
        with self._engine.connect() as connection:
            return [_line(row) for row in connection.execute(query).mappings()]


def _range(part: Period, after_id: UUID | None) -> tuple[UUID, UUID]:
    low = lowest_id(part.start)
    if after_id is not None:
        low = max(low, UUID(int=after_id.int + 1))
    return low, lowest_id(part.end)


def _outside(month: Period) -> sa.ColumnElement[bool]:
    """Not of a month that is read elsewhere; while it is on its way out, the table may have it."""
    low, end = _range(month, None)
    return ~usage_events.c.id.between(low, UUID(int=end.int - 1))


def page_query(
    customer: str, period: Period, *, after_id: UUID | None, limit: int
) -> sa.Select[Any]:
    """The query of one page. Its range of ids lets PostgreSQL leave the other months alone."""
    first = lowest_id(period.start)
    beginning = (
        usage_events.c.id >= first if after_id is None else usage_events.c.id > max(after_id, first)
    )
    return (
        sa.select(*_COLUMNS)
        .where(
            usage_events.c.customer_id == customer,
            beginning,
            usage_events.c.id < lowest_id(period.end),
        )
        .order_by(usage_events.c.id)
        .limit(min(limit, _MOST))
    )


def _line(row: Mapping[Any, Any]) -> ReceiptLine:
    fields: dict[str, Any] = {column.field: row[column.name] for column in OF_EVENT}
    fields["outcome"] = Outcome(fields["outcome"])
    return ReceiptLine(**fields, logged_at=row[LOGGED_AT.name])
