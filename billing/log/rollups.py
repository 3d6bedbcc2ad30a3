"""Questions about totals, answered from the hourly rollups.

A customer's months and days can begin within a UTC hour (Kathmandu is at +05:45). Such an hour is
cut into pieces, and only those pieces are read from the log.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from billing.core.errors import NotFound
from billing.core.ids import lowest_id
from billing.core.period import Period, hour_floor, zone
from billing.log.totals import Totals, totals_of

_HOUR: Final = timedelta(hours=1)


class By(StrEnum):
    """What usage is grouped by."""

    SKU = "sku"
    HOUR = "hour"
    """UTC hours."""
    DAY = "day"
    """Days on the customer's wall clocks."""
    STATUS = "status"
    """Outcome and reason."""


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One group: ``key`` is a SKU, the start of an hour (RFC 3339, UTC), a date, or an outcome.

    ``reason`` is given with an outcome only.
    """

    key: str
    reason: str
    totals: Totals


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of time that lies within one UTC hour and is less than that hour."""

    start: datetime
    end: datetime


# `at` is an instant within the day and the hour that the row counts for.
_PARTS: Final = """
    WITH parts AS (
        SELECT hour AS at, sku_id, outcome, reason, events::numeric AS events, quantity,
            amount_microcredits, shortfall_microcredits, cost_micros
        FROM usage_hourly
        WHERE customer_id = :customer AND hour >= :first AND hour < :end
            AND hour <> ALL(CAST(:cut AS timestamptz[]))
        UNION ALL
        SELECT piece.at, sku_id, outcome, reason, 1, quantity,
            amount_microcredits, shortfall_microcredits, cost_micros
        FROM unnest(CAST(:ats AS timestamptz[]), CAST(:lows AS uuid[]), CAST(:ends AS uuid[]))
            AS piece (at, low, up_to)
        JOIN usage_events ON customer_id = :customer AND id >= piece.low AND id < piece.up_to
    )
"""
_SUMS: Final = """
    sum(events), sum(quantity), sum(amount_microcredits), sum(shortfall_microcredits),
    sum(cost_micros)
"""
_HOUR_TEXT: Final = (
    """to_char(date_trunc('hour', at AT TIME ZONE 'UTC'), 'YYYY-MM-DD"T"HH24:MI:SS"Z"')"""
)
_GROUPS: Final = {
    By.SKU: ("sku_id", "''", ""),
    By.HOUR: (_HOUR_TEXT, "''", ""),
    By.STATUS: ("outcome", "reason", ""),
    By.DAY: (
        "day.label",
        "''",
        """JOIN unnest(CAST(:day_starts AS timestamptz[]), CAST(:day_ends AS timestamptz[]),
            CAST(:day_labels AS text[])) AS day (start, up_to, label)
            ON at >= day.start AND at < day.up_to""",
    ),
}
_QUERIES: Final = {
    by: sa.text(
        f"{_PARTS} SELECT {key}, {reason}, {_SUMS} FROM parts {join}"  # noqa: S608 - constants above
        " GROUP BY 1, 2 ORDER BY 1, 2"
    )
    for by, (key, reason, join) in _GROUPS.items()
}
_TOTAL: Final = sa.text(f"{_PARTS} SELECT {_SUMS} FROM parts")  # noqa: S608 - as above
_SUBJECTS: Final = sa.text(
    """
    SELECT sku_id, subjects FROM usage_subject_counts
    WHERE customer_id = :customer AND month = :month ORDER BY sku_id
    """
)


class Usage:
    """What a customer used in a period.

    Args:
        engine: Any that may read the log.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def by(self, customer: str, period: Period, by: By) -> list[UsageRow]:
        """The customer's usage in groups, in order of their keys; empty groups are left out.

        Args:
            customer: Whose.
            period: Half-open; usually a month of the customer's zone (``billing.core.period``).
            by: What to group by.

        Raises:
            NotFound: There is no such customer.
        """
        with self._engine.connect() as connection:
            days = _days(period, _time_zone(connection, customer))
            parameters = _parameters(customer, period, days)
            if by is By.DAY:
                parameters["day_starts"] = [start for start, _, _ in days]
                parameters["day_ends"] = [end for _, end, _ in days]
                parameters["day_labels"] = [label for _, _, label in days]
            rows = connection.execute(_QUERIES[by], parameters).all()
        return [UsageRow(row[0], row[1], totals_of(row[2:])) for row in rows]

    def total(self, customer: str, period: Period) -> Totals:
        """The customer's totals of the period; zero for a customer who is not there."""
        with self._engine.connect() as connection:
            row = connection.execute(_TOTAL, _parameters(customer, period, [])).one()
        return totals_of(row)

    def subjects(self, customer: str, month: date) -> dict[str, int]:
        """How many distinct subjects the customer used each SKU on, in a UTC month.

        Args:
            customer: Whose.
            month: Any day of it.
        """
        parameters = {"customer": customer, "month": month.replace(day=1)}
        with self._engine.connect() as connection:
            return {row.sku_id: row.subjects for row in connection.execute(_SUBJECTS, parameters)}


def _time_zone(connection: Connection, customer: str) -> str:
    query = sa.text("SELECT time_zone FROM customers WHERE id = :customer")
    name = connection.execute(query, {"customer": customer}).scalar()
    if name is None:
        raise NotFound("customer", customer, "see: billing customers list")
    return str(name)


def _parameters(
    customer: str, period: Period, days: list[tuple[datetime, datetime, str]]
) -> dict[str, Any]:
    pieces = _pieces(period, days)
    return {
        "customer": customer,
        "first": hour_floor(period.start),
        "end": period.end,
        "cut": sorted({hour_floor(piece.start) for piece in pieces}),
        "ats": [piece.start for piece in pieces],
        "lows": [lowest_id(piece.start) for piece in pieces],
        "ends": [lowest_id(piece.end) for piece in pieces],
    }


def _days(period: Period, time_zone: str) -> list[tuple[datetime, datetime, str]]:
    """Start, end and date of every day of the period on the wall clocks of the zone."""
    where = zone(time_zone)
    day = period.start.astimezone(where).date()
    days = []
    start = period.start
    while start < period.end:
        following = datetime.combine(day + timedelta(days=1), time(), where)
        end = min(following.astimezone(period.start.tzinfo), period.end)
        days.append((start, end, day.isoformat()))
        start, day = end, day + timedelta(days=1)
    return days


def _pieces(period: Period, days: list[tuple[datetime, datetime, str]]) -> list[_Piece]:
    """The parts of those hours that an edge of the period or of a day cuts."""
    edges = {period.start, period.end, *(start for start, _, _ in days)}
    cut = {hour_floor(edge) for edge in edges if edge != hour_floor(edge)}
    pieces = []
    for hour in sorted(cut):
        bounds = {hour, hour + _HOUR, *(edge for edge in edges if hour < edge < hour + _HOUR)}
        inside = sorted(bound for bound in bounds if period.start <= bound <= period.end)
        pieces += [_Piece(*pair) for pair in pairwise(inside)]
    return pieces
