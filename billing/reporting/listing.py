"""Queries of the outbox for people: reports, adjustments, counts. Reads only."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Engine, Row

from billing.core.errors import NotFound
from billing.core.periods import Period
from billing.reporting.adjustments import AdjustmentReason
from billing.reporting.bucket_sql import held_of
from billing.reporting.usage_report import ReportState

# What a bucket's last revision adds to what providers have: open or parked. 0 of any other row.
_AMOUNT: Final = f"""
    CASE WHEN r.latest AND r.state NOT IN ('accepted', 'confirmed') THEN
        r.total_microcredits - coalesce((
            SELECT sum(has.held_microcredits) FROM ({held_of("r")}) AS has), 0)
        ELSE 0 END
"""  # noqa: S608 - made of constants
_ROW: Final = f"""
    r.id, r.customer_id, r.sku_id, r.hour, r.revision, r.latest, r.provider, r.meter, r.overwrites,
    r.identifier, r.customer_ref, r.value, r.event_at, r.total_microcredits, r.held_microcredits,
    r.state, r.cause, r.detail, r.doubtful, r.attempts, r.next_at, r.lease_until, r.created_at,
    r.first_sent_at, r.answered_at, r.confirm_at, r.readings, r.resent, r.confirmed_at,
    {_AMOUNT} AS amount_microcredits
"""

_LIST: Final = sa.text(
    f"""
    SELECT {_ROW} FROM usage_reports AS r
    WHERE (NOT :only_latest OR r.latest)
        AND (CAST(:states AS text[]) IS NULL OR r.state = ANY(CAST(:states AS text[])))
        AND (CAST(:customer AS text) IS NULL OR r.customer_id = CAST(:customer AS text))
        AND (CAST(:sku AS text) IS NULL OR r.sku_id = CAST(:sku AS text))
        AND (CAST(:provider AS text) IS NULL OR r.provider = CAST(:provider AS text))
        AND (CAST(:cause AS text) IS NULL OR r.cause = CAST(:cause AS text))
    ORDER BY r.hour DESC, r.id DESC LIMIT :limit
    """  # noqa: S608 - made of the constants above
)

_SHOW: Final = sa.text(
    f"""
    SELECT {_ROW} FROM usage_reports AS r
    JOIN usage_reports AS asked ON asked.id = :id AND asked.customer_id = r.customer_id
        AND asked.sku_id = r.sku_id AND asked.hour = r.hour
    ORDER BY r.revision
    """  # noqa: S608 - made of the constants above
)

_CARRY: Final = """
    SELECT id, customer_id, sku_id, from_hour, to_hour, amount_microcredits, reason, note,
        created_at
    FROM report_carries
"""
_BUCKETS_CARRIES: Final = sa.text(
    f"""
    {_CARRY}
    WHERE customer_id = :customer AND sku_id = :sku AND (from_hour = :hour OR to_hour = :hour)
    ORDER BY id
    """
)
_CARRIES: Final = sa.text(
    f"""
    {_CARRY}
    WHERE (CAST(:customer AS text) IS NULL OR customer_id = CAST(:customer AS text))
        AND (CAST(:sku AS text) IS NULL OR sku_id = CAST(:sku AS text))
        AND (CAST(:start AS timestamptz) IS NULL
            OR (from_hour >= CAST(:start AS timestamptz) AND from_hour < :end)
            OR (to_hour >= CAST(:start AS timestamptz) AND to_hour < :end))
    ORDER BY id DESC LIMIT :limit
    """
)

_COUNTS: Final = sa.text(
    f"""
    SELECT state, count(*) AS reports,
        sum(CASE WHEN state IN ('accepted', 'confirmed') THEN held_microcredits ELSE amount END)
            AS amount
    FROM (
        SELECT r.state, r.held_microcredits, {_AMOUNT} AS amount
        FROM usage_reports AS r WHERE r.latest AND r.provider = :provider
    ) AS each GROUP BY state
    """  # noqa: S608 - made of the constants above
)

# The conditions on the cause are those of the index.
_PARKED: Final = sa.text(
    f"""
    SELECT cause, count(*) AS reports, sum(amount) AS amount, min(hour) AS oldest
    FROM (
        SELECT r.cause, r.hour, {_AMOUNT} AS amount
        FROM usage_reports AS r
        WHERE r.state = 'parked' AND r.latest AND r.cause <> 'carried'
            AND r.cause <> 'nothing_to_tell' AND r.provider = :provider
    ) AS each WHERE amount <> 0 GROUP BY cause ORDER BY cause
    """  # noqa: S608 - made of the constants above
)

_OLDEST_UNCONFIRMED: Final = sa.text(
    """
    SELECT least(
        (SELECT min(created_at) FROM usage_reports
         WHERE provider = :provider AND state IN ('pending', 'sending', 'unknown') AND latest),
        (SELECT min(answered_at) FROM usage_reports
         WHERE provider = :provider AND state = 'accepted' AND confirm_at IS NOT NULL))
    """
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRow:
    """A report as it stands. The columns are explained in ``billing.postgres.schema``.

    ``amount_microcredits``: what its bucket comes to beyond what providers have, where this is its
    last revision and not taken: open or parked. Else 0.
    """

    id: int
    customer: str
    sku: str
    hour: datetime
    revision: int
    latest: bool
    provider: str
    meter: str
    overwrites: bool
    identifier: str
    customer_ref: str | None
    value: int
    event_at: datetime
    total_microcredits: int
    held_microcredits: int
    state: ReportState
    cause: str
    detail: str
    doubtful: bool
    attempts: int
    next_at: datetime
    lease_until: datetime | None
    created_at: datetime
    first_sent_at: datetime | None
    answered_at: datetime | None
    confirm_at: datetime | None
    readings: int
    resent: int
    confirmed_at: datetime | None
    amount_microcredits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdjustmentRow:
    """An adjustment: an amount of either sign that is reported in ``to_hour``."""

    id: int
    customer: str
    sku: str
    from_hour: datetime
    to_hour: datetime
    amount_microcredits: int
    reason: AdjustmentReason
    note: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportHistory:
    """A report, every revision of its bucket, and the bucket's adjustments, out and in."""

    report: ReportRow
    revisions: Sequence[ReportRow]
    carries: Sequence[AdjustmentRow]


@dataclass(frozen=True, slots=True)
class ReportCount:
    """A number of reports and their amount: accepted, open, or needing attention."""

    reports: int
    amount_microcredits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedsAttention:
    """Reports that need attention for one cause; ``oldest`` is their first hour."""

    cause: str
    reports: int
    amount_microcredits: int
    oldest: datetime


class ReportListing:
    """Questions about the outbox.

    Args:
        engine: PostgreSQL.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def show(self, report: int) -> ReportHistory:
        """A report with its bucket's history.

        Raises:
            NotFound: There is no such report.
        """
        with self._engine.connect() as connection:
            rows = [_report(row) for row in connection.execute(_SHOW, {"id": report})]
            asked = next((row for row in rows if row.id == report), None)
            if asked is None:
                raise NotFound("report", str(report), "see: billing report list")
            bucket = {"customer": asked.customer, "sku": asked.sku, "hour": asked.hour}
            carries = [_carry(row) for row in connection.execute(_BUCKETS_CARRIES, bucket)]
        return ReportHistory(report=asked, revisions=rows, carries=carries)

    def carries(
        self,
        customer: str | None = None,
        sku: str | None = None,
        period: Period | None = None,
        limit: int = 100,
    ) -> Sequence[AdjustmentRow]:
        """Carry lines, the newest first.

        Args:
            customer: Only of this one.
            sku: Only of this one.
            period: Only out of it or into it.
            limit: The most to give.
        """
        parameters = {
            "customer": customer, "sku": sku, "limit": limit,
            "start": period.start if period else None, "end": period.end if period else None,
        }  # fmt: skip
        with self._engine.connect() as connection:
            return [_carry(row) for row in connection.execute(_CARRIES, parameters)]

    def counts(self, provider: str) -> Mapping[ReportState, ReportCount]:
        """Count buckets by the state of their last revision at a provider; absent: none."""
        with self._engine.connect() as connection:
            rows = connection.execute(_COUNTS, {"provider": provider}).all()
        return {ReportState(row.state): ReportCount(row.reports, int(row.amount)) for row in rows}

    def attention_by_cause(self, provider: str) -> Sequence[NeedsAttention]:
        """Reports with an amount that need attention at a provider, by cause."""
        with self._engine.connect() as connection:
            rows = connection.execute(_PARKED, {"provider": provider}).all()
        return [
            NeedsAttention(
                cause=row.cause,
                reports=row.reports,
                amount_microcredits=int(row.amount),
                oldest=row.oldest,
            )
            for row in rows
        ]

    def oldest_unconfirmed(self, provider: str) -> datetime | None:
        """Since when the report waits that waits longest for its answer or its confirmation.

        The age by which a provider that takes nothing, or counts nothing, shows.
        """
        with self._engine.connect() as connection:
            found: datetime | None = connection.execute(
                _OLDEST_UNCONFIRMED, {"provider": provider}
            ).scalar()
        return found

    def list(
        self,
        *,
        states: Collection[ReportState] | None = None,
        customer: str | None = None,
        sku: str | None = None,
        provider: str | None = None,
        cause: str | None = None,
        limit: int = 100,
        only_latest: bool = True,
    ) -> Sequence[ReportRow]:
        """Reports, the newest hour first.

        Args:
            states: Only in one of these.
            customer: Only of this one.
            sku: Only of this one.
            provider: Only of this one.
            cause: Only with this one.
            limit: The most to give.
            only_latest: Only each bucket's last revision.
        """
        parameters = {
            "states": None if states is None else sorted(states), "customer": customer, "sku": sku,
            "provider": provider, "cause": cause, "limit": limit, "only_latest": only_latest,
        }  # fmt: skip
        with self._engine.connect() as connection:
            return [_report(row) for row in connection.execute(_LIST, parameters)]


def _report(row: Row[Any]) -> ReportRow:
    fields = dict(row._mapping)  # noqa: SLF001 - the documented way to a row's names
    for name in ("value", "total_microcredits", "held_microcredits", "amount_microcredits"):
        fields[name] = int(fields[name])
    return ReportRow(
        customer=fields.pop("customer_id"),
        sku=fields.pop("sku_id"),
        state=ReportState(fields.pop("state")),
        **fields,
    )


def _carry(row: Row[Any]) -> AdjustmentRow:
    return AdjustmentRow(
        id=row.id,
        customer=row.customer_id,
        sku=row.sku_id,
        from_hour=row.from_hour,
        to_hour=row.to_hour,
        amount_microcredits=int(row.amount_microcredits),
        reason=AdjustmentReason(row.reason),
        note=row.note,
        created_at=row.created_at,
    )
