"""True-up of a closed period: the books come to say what was billed of it.

One transaction: the hours' corrected revisions, the adjustments that make up for them, and the note
that the period is trued up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, CursorResult, Row

from billing.core.periods import hour_floor
from billing.providers.report_value import CREDIT_DECIMALS, scaled
from billing.reporting.adjustments import AdjustmentReason, Holding, as_billed
from billing.reporting.bucket_sql import held_of
from billing.reporting.destination import Metered
from billing.reporting.revision_rules import HOUR
from billing.reporting.usage_report import (
    BILLED,
    EVENT_OFFSET,
    OPEN,
    AttentionCause,
    ReportState,
    identifier_of,
)

# The next comparison reads the hours of a month, not only the recent ones.
LOOK_BACK: Final = sa.text("DELETE FROM report_passes WHERE depth = 'month'")

_PERIOD: Final = """
    provider = :provider AND customer_id = :customer AND customer_ref = :ref AND meter = :meter
        AND period_start = :start AND period_end = :end
"""

_LOCK_PERIODS: Final = sa.text(
    f"""
    SELECT invoice_ref, billed_value, settled_at FROM report_seals
    WHERE {_PERIOD} ORDER BY id FOR UPDATE
    """  # noqa: S608 - made of the constants above
)

_SETTLED: Final = sa.text(
    f"UPDATE report_seals SET settled_at = :now WHERE {_PERIOD} AND settled_at IS NULL"  # noqa: S608 - as above
)

# Whoever it was for: nothing of a closed period is sent to anybody. A claim that is at it in this
# moment passes over a locked row, or finds it parked.
_PARK_OPEN: Final = sa.text(
    """
    UPDATE usage_reports SET state = 'parked', cause = :cause, detail = :detail,
        confirm_at = CASE WHEN doubtful THEN CAST(:now AS timestamptz) END
    WHERE id IN (
        SELECT id FROM usage_reports
        WHERE customer_id = :customer AND sku_id = :sku AND meter = :meter
            AND hour >= :first AND hour < :before AND state IN ('pending', 'unknown')
        ORDER BY id FOR UPDATE
    )
    """
)

_LOCK_HOURS: Final = sa.text(
    """
    SELECT id FROM usage_reports
    WHERE latest AND customer_id = :customer AND sku_id = :sku AND hour >= :first AND hour < :before
    ORDER BY id FOR UPDATE
    """
)

# The last revision of each hour, what the holder has of it, and what all holders have.
_HOURS: Final = sa.text(
    f"""
    SELECT l.id, l.hour, l.revision, l.state, l.cause, l.doubtful, l.meter, own.held,
        own.answered_at, coalesce(everybody.held, 0) AS taken
    FROM usage_reports AS l
    LEFT JOIN LATERAL (
        SELECT a.held_microcredits AS held, coalesce(a.answered_at, a.created_at) AS answered_at
        FROM usage_reports AS a
        WHERE a.customer_id = l.customer_id AND a.sku_id = l.sku_id AND a.hour = l.hour
            AND a.provider = :provider AND a.customer_ref = :ref AND a.meter = :meter
            AND a.state IN ('accepted', 'confirmed')
        ORDER BY a.revision DESC LIMIT 1
    ) AS own ON true
    LEFT JOIN LATERAL (
        SELECT sum(has.held_microcredits) AS held FROM ({held_of("l")}) AS has
    ) AS everybody ON true
    WHERE l.latest AND l.customer_id = :customer AND l.sku_id = :sku
        AND l.hour >= :first AND l.hour < :before
    """  # noqa: S608 - made of constants
)

_SUPERSEDE: Final = sa.text("UPDATE usage_reports SET latest = false WHERE id = :id")

_INSERT: Final = sa.text(
    """
    INSERT INTO usage_reports (customer_id, sku_id, hour, revision, latest, provider, meter,
        overwrites, identifier, customer_ref, value, event_at, total_microcredits,
        held_microcredits, state, cause, detail, next_at, created_at, answered_at, confirmed_at)
    VALUES (:customer, :sku, :hour, :revision, true, :provider, :meter, true, :identifier,
        :ref, :value, :event_at, :total, :held, :state, :cause, :detail, :now, :now, :now, :now)
    """
)

_CARRY: Final = sa.text(
    """
    INSERT INTO report_carries (customer_id, sku_id, from_hour, to_hour, amount_microcredits,
        reason, note, created_at)
    VALUES (:customer, :sku, :hour, :under_way, :amount, :reason, :note, :now)
    """
)


_SEALED: Final = "the provider's invoice was final before this was answered"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A period that was billed otherwise than was accepted, in the meter's smallest unit."""

    provider: str
    customer: str
    meter: str
    period_start: datetime
    period_end: datetime
    invoice_refs: Sequence[str]
    accepted_value: int
    billed_value: int


class TrueUp:
    """One period of one customer's meter.

    Args:
        connection: Of the transaction.
        period: A row with provider, customer_id, customer_ref, meter, period_start and period_end.
        metered: How the meter counts.
        now: The time, not before the period's end.
    """

    def __init__(
        self, connection: Connection, period: Row[Any], metered: Metered, now: datetime
    ) -> None:
        self._connection = connection
        self._period = period
        self._metered = metered
        self._parameters = {
            "provider": period.provider, "customer": period.customer_id,
            "ref": period.customer_ref, "meter": period.meter, "sku": metered.meter.sku,
            "start": period.period_start, "end": period.period_end, "now": now,
            # An hour in which one period ends and the next begins is billed with the next.
            "first": hour_floor(period.period_start), "before": hour_floor(period.period_end),
            "under_way": hour_floor(now),
        }  # fmt: skip

    def run(self) -> Difference | None:
        """Settle the period, if nothing of it is undecided; what differed, if anything did.

        What is open of it is parked in any case.

        Raises:
            sqlalchemy.exc.IntegrityError: Somebody wrote a revision of one of its hours meanwhile.
        """
        closed = self._execute(_LOCK_PERIODS).all()
        if all(one.settled_at is not None for one in closed):
            return None
        billed = sum(int(one.billed_value) for one in closed)
        self._execute(_PARK_OPEN, cause=AttentionCause.PERIOD_CLOSED.value, detail=_SEALED)
        self._execute(_LOCK_HOURS)
        hours = {row.hour: row for row in self._execute(_HOURS)}
        holdings = [
            Holding(row.hour, row.answered_at, scaled(int(row.held), self._metered.decimals).value)
            for row in hours.values()
            if row.held is not None
        ]
        accepted = sum(holding.value for holding in holdings)
        if not _decided(hours.values(), differs=accepted != billed):
            return None
        note = ", ".join(one.invoice_ref for one in closed)
        for hour, value in as_billed(holdings or self._last_hour(), billed).items():
            self._correct(hour, hours.get(hour), value, f"billed by invoice {note}")
        self._execute(_SETTLED)
        self._execute(LOOK_BACK)
        if accepted == billed:
            return None
        return Difference(
            provider=self._period.provider,
            customer=self._period.customer_id,
            meter=self._period.meter,
            period_start=self._period.period_start,
            period_end=self._period.period_end,
            invoice_refs=[one.invoice_ref for one in closed],
            accepted_value=accepted,
            billed_value=billed,
        )

    def _last_hour(self) -> list[Holding]:
        """The hour for a billed figure of which nothing was accepted; none in less than an hour."""
        last = self._parameters["before"] - HOUR
        if last < self._parameters["first"]:
            return []
        return [Holding(last, self._parameters["now"], 0)]

    def _correct(self, hour: datetime, last: Row[Any] | None, value: int, detail: str) -> None:
        """Say that the provider has this of an hour, and carry what that takes or leaves."""
        held = value * 10 ** (CREDIT_DECIMALS - self._metered.decimals)
        added = held - int(last.held or 0) if last is not None else held
        taken = int(last.taken) if last is not None else 0
        revision = last.revision + 1 if last is not None else 1
        if last is not None:
            self._execute(_SUPERSEDE, id=last.id)
        self._execute(
            _INSERT,
            hour=hour,
            revision=revision,
            identifier=self._named(hour, revision),
            value=value,
            event_at=hour + EVENT_OFFSET,
            total=taken + added,
            held=held,
            state=ReportState.CONFIRMED.value,
            cause=BILLED,
            detail=detail,
        )
        self._execute(
            _CARRY, hour=hour, amount=-added, reason=AdjustmentReason.BILLED.value, note=detail
        )

    def _named(self, hour: datetime, revision: int) -> str:
        """An identifier of its own; it is sent to nobody."""
        period = self._period
        return identifier_of(
            BILLED, period.provider, period.meter, period.customer_id, hour, revision
        )

    def _execute(self, statement: sa.TextClause, **more: object) -> CursorResult[Any]:
        return self._connection.execute(statement, self._parameters | more)


def _decided(hours: Iterable[Row[Any]], *, differs: bool) -> bool:
    """Whether every figure of the hours is known to be there or not.

    Hours that are held back by hand are not touched: a period that differs waits for them.
    """
    return not any(
        row.state in OPEN
        or (
            row.state == ReportState.NEEDS_ATTENTION
            and (row.doubtful or (differs and _by_hand(row)))
        )
        for row in hours
    )


def _by_hand(row: Row[Any]) -> bool:
    return bool(row.cause == AttentionCause.BY_HAND)
