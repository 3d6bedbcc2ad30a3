"""Sums per customer, from the log and from the rollups; an invariant says that they are equal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection


@dataclass(frozen=True, slots=True)
class Totals:
    """Integer sums over events."""

    events: int = 0
    quantity: int = 0
    amount_microcredits: int = 0
    shortfall_microcredits: int = 0
    cost_micros: int = 0


_LOG = sa.text(
    """
    SELECT customer_id, count(*), sum(quantity), sum(amount_microcredits),
        sum(shortfall_microcredits), sum(cost_micros)
    FROM usage_events GROUP BY customer_id
    """
)
_ROLLUPS = sa.text(
    """
    SELECT customer_id, sum(events), sum(quantity), sum(amount_microcredits),
        sum(shortfall_microcredits), sum(cost_micros)
    FROM usage_hourly GROUP BY customer_id
    """
)


def totals_from_log(connection: Connection) -> dict[str, Totals]:
    """Every customer's totals, added up row by row; reads the whole log.

    For a comparison with ``totals_from_rollups`` while events arrive, run both in one transaction
    that is REPEATABLE READ.
    """
    return _by_customer(connection.execute(_LOG))


def totals_from_rollups(connection: Connection) -> dict[str, Totals]:
    """Every customer's totals as the hourly rollups have them."""
    return _by_customer(connection.execute(_ROLLUPS))


def totals_of(row: Iterable[Any]) -> Totals:
    """Totals of five sums as PostgreSQL gives them: numeric, or NULL over no rows."""
    return Totals(*(int(value or 0) for value in row))


def _by_customer(rows: Iterable[Any]) -> dict[str, Totals]:
    return {row[0]: totals_of(row[1:]) for row in rows}
