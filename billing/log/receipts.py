"""Receipts: the lines of the log, one by one, as a customer is shown them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from billing.core.ids import instant_of, lowest_id
from billing.core.period import Period
from billing.log.rollups import Usage
from billing.log.totals import Totals
from billing.tables import usage_events
from billing.usage.event import Outcome

_MOST: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptLine:
    """One logged event; fields as of ``billing.usage.event.UsageEvent``."""

    id: UUID
    customer: str
    sku: str
    line: str
    outcome: Outcome
    reason: str
    quantity: int
    amount_microcredits: int
    shortfall_microcredits: int
    held_microcredits: int
    cost_micros: int
    currency: str
    subject: str | None
    dimensions: dict[str, str]
    task_id: str
    task_name: str
    root_id: str | None
    parent_id: str | None
    group_id: str | None
    attempt: int
    worker: str
    degraded: bool
    quota_epoch: int
    started_at: datetime | None
    finished_at: datetime | None
    logged_at: datetime

    @property
    def metered_at(self) -> datetime:
        """The instant the usage belongs to: the one in the id."""
        return instant_of(self.id)


_COLUMNS: Final = [column for column in usage_events.c if column.name != "fingerprint"]
_FIELDS: Final = {"customer_id": "customer", "sku_id": "sku"}


class Receipts:
    """Reads the log line by line.

    Args:
        engine: Any that may read the log.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def lines(
        self, customer: str, period: Period, *, after_id: UUID | None = None, limit: int = 100
    ) -> list[ReceiptLine]:
        """A page of the customer's lines in the order of their ids, which is that of metering.

        Args:
            customer: Whose.
            period: Half-open, by ``metered_at``.
            after_id: The last id of the page before; None for the first page.
            limit: The most lines, up to 10,000.
        """
        return self._read(page_query(customer, period, after_id=after_id, limit=limit))

    def latest(self, customer: str, *, limit: int = 10) -> list[ReceiptLine]:
        """The customer's newest lines by metering, newest first.

        Args:
            customer: Whose.
            limit: The most lines, up to 10,000.
        """
        query = (
            sa.select(*_COLUMNS)
            .where(usage_events.c.customer_id == customer)
            .order_by(usage_events.c.id.desc())
            .limit(min(limit, _MOST))
        )
        return self._read(query)

    def for_task(self, task_id: str) -> list[ReceiptLine]:
        """Every line of a task, denials and failures among them, in the order they were logged."""
        query = (
            sa.select(*_COLUMNS)
            .where(usage_events.c.task_id == task_id)
            .order_by(usage_events.c.logged_at, usage_events.c.id)
        )
        return self._read(query)

    def totals(self, customer: str, period: Period) -> Totals:
        """What all pages of ``lines`` add up to, from the rollups."""
        return Usage(self._engine).total(customer, period)

    def _read(self, query: sa.Select[Any]) -> list[ReceiptLine]:
        with self._engine.connect() as connection:
            return [_line(row) for row in connection.execute(query).mappings()]


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


def _line(row: sa.RowMapping) -> ReceiptLine:
    fields: dict[str, Any] = {_FIELDS.get(name, name): value for name, value in row.items()}
    return ReceiptLine(**{**fields, "outcome": Outcome(fields["outcome"])})
