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

from sqlalchemy.engine import Connection, Engine, Row

from billing.core.clock import EPOCH
from billing.providers.port import ProviderCause
from billing.reporting import confirmation_queries as queries
from billing.reporting.confirmation_rules import Decided, Entry, Group, ReadingFinding
from billing.reporting.reading_results import note, still
from billing.reporting.revision_rules import Holder
from billing.reporting.usage_report import ReportState

MARGIN: Final = timedelta(minutes=5)
"""Around a window that a provider names: its clock is not ours."""

_MAX_DETAIL: Final = 500


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a run has come: reports due at ``at`` up to this id are done."""

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
        """Who has figures that are to be read back, former providers too."""
        with self._engine.connect() as connection:
            return list(connection.execute(queries.PROVIDERS).scalars())

    def prepare(self, provider: str, now: datetime) -> None:
        """Drop what a later figure stands for, and take on doubtful reports that nobody reads."""
        with self._engine.begin() as connection:
            for statement in (queries.FORGET, queries.ADOPT):
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
            rows = connection.execute(queries.DUE, parameters).all()
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
            return [_entry(row) for row in connection.execute(queries.DAY, parameters)]

    def apply(
        self, group: Group, decided: Sequence[Decided], *, environment: str, now: datetime
    ) -> Counter[ReadingFinding]:
        """Note what a reading made of reports, of those that still stand as they did before it.

        Args:
            group: What was read.
            decided: What was found.
            environment: Of identifiers; see ``report.identifier_of``.
            now: The time.

        Returns:
            How many of each finding were noted.
        """
        wanted = [one for one in decided if one.judgement.finding is not ReadingFinding.LEAVE]
        done: Counter[ReadingFinding] = Counter()
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
            return inside.execute(queries.RECHECK, parameters).rowcount

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
            parked = inside.execute(queries.REJECT, parameters).rowcount
            inside.execute(queries.RECHECK_BUCKETS, parameters)
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
        doubtful=row.doubtful,
        answered_at=row.answered_at,
        confirm_at=row.confirm_at,
        confirmed_at=row.confirmed_at,
        readings=row.readings,
        resent=row.resent,
        sealed=row.sealed,
    )
