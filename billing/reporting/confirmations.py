"""Reading back in PostgreSQL: which figures are due, and what a reading makes of them.

A reading is applied only to reports that still stand as they stood before it: whoever was faster
(another reader, the plan, a person) has its way, and the figure is read again. So any number of
readers may run at once, and none of them is waited for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, Row

from billing.core.clock import EPOCH
from billing.providers.port import ProviderCause
from billing.reporting.bucket_sql import PERIOD_IS_FINAL
from billing.reporting.confirmation_rules import Decided, Entry, Group, ReadBackFinding
from billing.reporting.read_back_results import note, still
from billing.reporting.revision_rules import Holder
from billing.reporting.usage_report import ReportState

MARGIN: Final = timedelta(minutes=5)
"""Around a window that a provider names: its clock is not ours."""

_MAX_DETAIL: Final = 500


_PROVIDERS: Final = sa.text(
    "SELECT DISTINCT provider FROM usage_reports WHERE confirm_at IS NOT NULL ORDER BY provider"
)

# What the same holder has accepted a later revision of is never looked at by itself again.
_FORGET: Final = sa.text(
    """
    UPDATE usage_reports SET confirm_at = NULL
    WHERE id IN (
        SELECT r.id FROM usage_reports AS r
        WHERE r.provider = :provider AND r.confirm_at <= :now AND r.state = 'accepted'
            AND EXISTS (
                SELECT FROM usage_reports AS n
                WHERE n.customer_id = r.customer_id AND n.sku_id = r.sku_id AND n.hour = r.hour
                    AND n.revision > r.revision AND n.provider = r.provider
                    AND n.customer_ref = r.customer_ref AND n.meter = r.meter
                    AND n.state IN ('accepted', 'confirmed')
            )
        ORDER BY r.id FOR UPDATE SKIP LOCKED
    )
    """
)

# Doubtful reports that were parked otherwise than by an answer: by hand, or after a day of silence.
_ADOPT: Final = sa.text(
    """
    UPDATE usage_reports SET confirm_at = :now
    WHERE id IN (
        SELECT id FROM usage_reports
        WHERE provider = :provider AND latest AND state = 'parked' AND doubtful
            AND confirm_at IS NULL AND customer_ref IS NOT NULL
        ORDER BY id FOR UPDATE SKIP LOCKED
    )
    """
)

# A bucket with an open revision waits for its answer.
_DUE: Final = sa.text(
    """
    SELECT r.id, r.confirm_at, r.customer_id, r.sku_id, r.customer_ref, r.meter, r.hour
    FROM usage_reports AS r
    WHERE r.provider = :provider AND r.confirm_at <= :now AND r.confirm_at >= :after_at
        AND (r.confirm_at, r.id) > (:after_at, :after_id)
        AND r.state IN ('accepted', 'parked') AND r.customer_ref IS NOT NULL
        AND NOT EXISTS (
            SELECT FROM usage_reports AS o
            WHERE o.customer_id = r.customer_id AND o.sku_id = r.sku_id AND o.hour = r.hour
                AND o.state IN ('pending', 'sending', 'unknown')
        )
    ORDER BY r.confirm_at, r.id
    LIMIT :limit
    """
)

_DAY: Final = sa.text(
    f"""
    SELECT r.id, r.hour, r.revision, r.provider, r.customer_ref, r.meter, r.value,
        r.held_microcredits, r.state, r.cause, r.doubtful, r.confirm_at, r.confirmed_at,
        r.readings, r.resent,
        coalesce(r.answered_at, r.first_sent_at, r.created_at) AS answered_at,
        {PERIOD_IS_FINAL} AS period_closed
    FROM usage_reports AS r
    WHERE r.customer_id = :customer AND r.sku_id = :sku AND r.hour >= :start AND r.hour < :end
    """  # noqa: S608 - made of constants
)

# What was sent between the first sending and the answer may have been judged in the window.
_RECHECK: Final = sa.text(
    """
    UPDATE usage_reports SET confirm_at = :now, readings = greatest(readings, 1)
    WHERE id IN (
        SELECT id FROM usage_reports
        WHERE provider = :provider AND confirm_at IS NOT NULL AND state = 'accepted'
            AND (CAST(:meter AS text) IS NULL OR meter = CAST(:meter AS text))
            AND first_sent_at <= :end AND answered_at >= :start
        ORDER BY id FOR UPDATE
    )
    """
)

_REJECT: Final = sa.text(
    f"""
    UPDATE usage_reports SET state = 'parked', cause = :cause, detail = :detail, confirm_at = NULL
    WHERE id IN (
        SELECT r.id FROM usage_reports AS r
        WHERE r.identifier = ANY(CAST(:identifiers AS text[])) AND r.state = 'accepted' AND r.latest
            AND NOT {PERIOD_IS_FINAL}
        ORDER BY r.id FOR UPDATE OF r
    )
    """  # noqa: S608 - made of constants
)

_RECHECK_BUCKETS: Final = sa.text(
    """
    UPDATE usage_reports SET confirm_at = :now, readings = greatest(readings, 1)
    WHERE id IN (
        SELECT r.id FROM usage_reports AS r
        JOIN usage_reports AS named ON named.customer_id = r.customer_id
            AND named.sku_id = r.sku_id AND named.hour = r.hour
        WHERE named.identifier = ANY(CAST(:identifiers AS text[]))
            AND r.provider = named.provider AND r.state = 'accepted'
        ORDER BY r.id FOR UPDATE OF r
    )
    """
)


@dataclass(frozen=True, slots=True)
class Cursor:
    """The place a run has come to: reports due at ``at`` up to this id are done."""

    at: datetime = EPOCH
    id: int = 0


@dataclass(frozen=True, slots=True)
class Due:
    """A page of groups that have a reading due, the one that waits longest first.

    ``after`` is the page's end, None where there is nothing more.
    """

    groups: Sequence[Group]
    after: Cursor | None


class ConfirmationStore:
    """Figures that providers have accepted and that were not read back yet.

    Args:
        engine: PostgreSQL, as the owner role.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def providers(self) -> list[str]:
        """Providers with figures to be read back, former ones too."""
        with self._engine.connect() as connection:
            return list(connection.execute(_PROVIDERS).scalars())

    def prepare(self, provider: str, now: datetime) -> None:
        """Forget superseded figures, and schedule reports of unknown outcome that nobody reads."""
        with self._engine.begin() as connection:
            for statement in (_FORGET, _ADOPT):
                connection.execute(statement, {"provider": provider, "now": now})

    def due(self, provider: str, *, now: datetime, after: Cursor, limit: int) -> Due:
        """A page of groups with a reading due.

        Args:
            provider: Whose.
            now: Readings are due up to here; the same for all pages of a run.
            after: Where the page before ended.
            limit: The most reports to look at.
        """
        parameters = {
            "provider": provider, "now": now, "limit": limit,
            "after_at": after.at, "after_id": after.id,
        }  # fmt: skip
        with self._engine.connect() as connection:
            rows = connection.execute(_DUE, parameters).all()
        groups = dict.fromkeys(_group(row, provider) for row in rows)
        last = Cursor(rows[-1].confirm_at, rows[-1].id) if len(rows) == limit else None
        return Due(tuple(groups), last)

    def entries(self, customer: str, sku: str, day: date) -> list[Entry]:
        """Every report of a customer's SKU on a UTC day, whoever holds it."""
        start = datetime.combine(day, time(), UTC)
        parameters = {
            "customer": customer, "sku": sku, "start": start, "end": start + timedelta(days=1)
        }  # fmt: skip
        with self._engine.connect() as connection:
            return [_entry(row) for row in connection.execute(_DAY, parameters)]

    def apply(
        self, group: Group, decided: Sequence[Decided], *, environment: str, now: datetime
    ) -> Counter[ReadBackFinding]:
        """Note what a reading made of reports, of those that still stand as they did before it.

        Args:
            group: What was read.
            decided: What was found.
            environment: Of identifiers; see ``usage_report.identifier_of``.
            now: The time.

        Returns:
            How many of each finding were noted.
        """
        wanted = [one for one in decided if one.judgement.finding is not ReadBackFinding.LEAVE]
        done: Counter[ReadBackFinding] = Counter()
        if not wanted:
            return done
        with self._engine.begin() as connection:
            for one in still(connection, group, wanted):
                done[one.judgement.finding] += 1
                note(connection, group, one, environment, now)
        return done

    def recheck(
        self,
        provider: str,
        meter: str | None,
        window_start: datetime,
        window_end: datetime,
        *,
        now: datetime,
        connection: Connection | None = None,
    ) -> int:
        """Read back soon what was sent around a window and is not confirmed.

        Args:
            provider: Whose.
            meter: Only of this meter; None: of any.
            window_start: The provider's times; five minutes more are taken on both sides.
            window_end: As above.
            now: The time.
            connection: The transaction it belongs to; None: one of its own.

        Returns:
            How many reports are read back sooner.
        """
        parameters = {
            "provider": provider, "meter": meter, "now": now,
            "start": window_start - MARGIN, "end": window_end + MARGIN,
        }  # fmt: skip
        with self._within(connection) as inside:
            return inside.execute(_RECHECK, parameters).rowcount

    def recheck_identifiers(
        self,
        identifiers: Sequence[str],
        cause: ProviderCause,
        *,
        now: datetime,
        detail: str = "",
        connection: Connection | None = None,
    ) -> int:
        """Park reports that a provider accepted first and rejected afterwards.

        What else it accepted for their hours is read back soon. What is confirmed, superseded, or
        of a period whose invoice is final stays as it is.

        Args:
            identifiers: Of reports.
            cause: Why they were rejected.
            now: The time.
            detail: For people.
            connection: The transaction it belongs to; None: one of its own.

        Returns:
            How many were parked.
        """
        parameters = {
            "identifiers": list(identifiers), "cause": cause.value, "now": now,
            "detail": (detail or "accepted at first, and rejected afterwards")[:_MAX_DETAIL],
        }  # fmt: skip
        with self._within(connection) as inside:
            parked = inside.execute(_REJECT, parameters).rowcount
            inside.execute(_RECHECK_BUCKETS, parameters)
        return parked

    @contextmanager
    def _within(self, connection: Connection | None) -> Iterator[Connection]:
        if connection is not None:
            yield connection
            return
        with self._engine.begin() as own:
            yield own


def _group(row: Row[Any], provider: str) -> Group:
    return Group(
        customer=row.customer_id,
        sku=row.sku_id,
        holder=Holder(provider, row.customer_ref, row.meter),
        # The session may have any time zone; a provider's day is UTC's.
        day=row.hour.astimezone(UTC).date(),
    )


def _entry(row: Row[Any]) -> Entry:
    return Entry(
        id=row.id,
        hour=row.hour.astimezone(UTC),
        revision=row.revision,
        holder=Holder(row.provider, row.customer_ref, row.meter),
        value=int(row.value),
        held_microcredits=int(row.held_microcredits),
        state=ReportState(row.state),
        cause=row.cause,
        outcome_unknown=row.doubtful,
        answered_at=row.answered_at,
        confirm_at=row.confirm_at,
        confirmed_at=row.confirmed_at,
        readings=row.readings,
        resent=row.resent,
        period_closed=row.period_closed,
    )
