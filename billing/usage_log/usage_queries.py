"""Questions about totals, answered from the hourly rollups.

A customer's months and days can begin within a UTC hour (Kathmandu is at +05:45). Such an hour is
cut into pieces, and only those pieces are read from the log, or from the archive of their month.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from billing.core.errors import NotFound
from billing.core.event_ids import lowest_id
from billing.core.periods import Period, hour_floor, zone
from billing.usage_log.archived_usage import (
    ArchivedUsage,
    NoArchivedUsage,
    read_with_stable_months,
)
from billing.usage_log.totals import Totals, totals_of

_HOUR: Final = timedelta(hours=1)


class By(StrEnum):
    """The grouping of usage."""

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


_Day = tuple[datetime, datetime, str]
"""Start, end and date."""


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
        UNION ALL
        SELECT at, sku_id, outcome, reason, 1, quantity, amount, shortfall, cost
        FROM unnest(
            CAST(:line_ats AS timestamptz[]), CAST(:line_skus AS text[]),
            CAST(:line_outcomes AS text[]), CAST(:line_reasons AS text[]),
            CAST(:line_quantities AS numeric[]), CAST(:line_amounts AS numeric[]),
            CAST(:line_shortfalls AS numeric[]), CAST(:line_costs AS numeric[])
        ) AS archived (at, sku_id, outcome, reason, quantity, amount, shortfall, cost)
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


class UsageQueries:
    """Queries of a customer's usage in a period.

    Args:
        engine: Any that may read the log.
        archived: Rows of archived months.
    """

    def __init__(self, engine: Engine, archived: ArchivedUsage | None = None) -> None:
        self._engine = engine
        self._archived: ArchivedUsage = archived or NoArchivedUsage()

    def by(self, customer: str, period: Period, by: By) -> list[UsageRow]:
        """The customer's usage in groups, in order of their keys; empty groups are left out.

        Args:
            customer: Whose.
            period: Half-open; usually a month of the customer's zone (``billing.core.periods``).
            by: What to group by.

        Raises:
            NotFound: There is no such customer.
        """
        with self._engine.connect() as connection:
            days = _days(period, _time_zone(connection, customer))
        more: dict[str, Any] = {}
        if by is By.DAY:
            more["day_starts"] = [start for start, _, _ in days]
            more["day_ends"] = [end for _, end, _ in days]
            more["day_labels"] = [label for _, _, label in days]
        rows = self._ask(_QUERIES[by], customer, period, days, more)
        return [UsageRow(row[0], row[1], totals_of(row[2:])) for row in rows]

    def total(self, customer: str, period: Period) -> Totals:
        """The customer's totals of the period; zero for a customer who is not there."""
        row = self._ask(_TOTAL, customer, period, [], {})[0]
        return totals_of(row)

    def subjects(self, customer: str, month: date) -> dict[str, int]:
        """Count the distinct subjects that the customer used each SKU on, in a UTC month.

        Args:
            customer: Whose.
            month: Any day of it.
        """
        parameters = {"customer": customer, "month": month.replace(day=1)}
        with self._engine.connect() as connection:
            return {row.sku_id: row.subjects for row in connection.execute(_SUBJECTS, parameters)}

    def _ask(
        self,
        query: sa.TextClause,
        customer: str,
        period: Period,
        days: list[_Day],
        more: dict[str, Any],
    ) -> Sequence[Any]:
        pieces = _pieces(period, days)

        def read(months: list[Period]) -> Sequence[Any]:
            away = [piece for month in months for piece in pieces if piece.start in month]
            there = [piece for piece in pieces if piece not in away]
            lines = [line for month in months for line in self._lines(customer, pieces, month)]
            parameters = _parameters(customer, period, pieces, there, lines)
            with self._engine.connect() as connection:
                return connection.execute(query, {**parameters, **more}).all()

        return read_with_stable_months(self._archived, read) if pieces else read([])

    def _lines(
        self, customer: str, pieces: list[_Piece], month: Period
    ) -> list[tuple[datetime, Mapping[str, Any]]]:
        """The rows of those pieces that are of an archived month, each with its piece's start."""
        inside = [piece for piece in pieces if piece.start in month]
        if not inside:
            return []
        ranges = [(lowest_id(piece.start), lowest_id(piece.end)) for piece in inside]
        found = self._archived.open(month).ranges(customer, ranges)
        return [
            (piece.start, row) for piece, rows in zip(inside, found, strict=True) for row in rows
        ]


def _time_zone(connection: Connection, customer: str) -> str:
    query = sa.text("SELECT time_zone FROM customers WHERE id = :customer")
    name = connection.execute(query, {"customer": customer}).scalar()
    if name is None:
        raise NotFound("customer", customer, "see: billing customers list")
    return str(name)


def _parameters(
    customer: str,
    period: Period,
    cut: list[_Piece],
    pieces: list[_Piece],
    lines: list[tuple[datetime, Mapping[str, Any]]],
) -> dict[str, Any]:
    """Build the parameters of the queries.

    Args:
        customer: Whose.
        period: Half-open.
        cut: All pieces of hours; these hours are not taken from the rollups.
        pieces: Those of them that are read from the log.
        lines: The rows of the others, each with the start of its piece.
    """
    return {
        "customer": customer,
        "first": hour_floor(period.start),
        "end": period.end,
        "cut": sorted({hour_floor(piece.start) for piece in cut}),
        "ats": [piece.start for piece in pieces],
        "lows": [lowest_id(piece.start) for piece in pieces],
        "ends": [lowest_id(piece.end) for piece in pieces],
        "line_ats": [at for at, _ in lines],
        **{name: [row[column] for _, row in lines] for name, column in _OF_LINES.items()},
    }


_OF_LINES: Final = {
    "line_skus": "sku_id",
    "line_outcomes": "outcome",
    "line_reasons": "reason",
    "line_quantities": "quantity",
    "line_amounts": "amount_microcredits",
    "line_shortfalls": "shortfall_microcredits",
    "line_costs": "cost_micros",
}


def _days(period: Period, time_zone: str) -> list[_Day]:
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


def _pieces(period: Period, days: list[_Day]) -> list[_Piece]:
    """The parts of those hours that an edge of the period or of a day cuts."""
    edges = {period.start, period.end, *(start for start, _, _ in days)}
    cut = {hour_floor(edge) for edge in edges if edge != hour_floor(edge)}
    pieces = []
    for hour in sorted(cut):
        bounds = {hour, hour + _HOUR, *(edge for edge in edges if hour < edge < hour + _HOUR)}
        inside = sorted(bound for bound in bounds if period.start <= bound <= period.end)
        pieces += [_Piece(*pair) for pair in pairwise(inside)]
    return pieces
