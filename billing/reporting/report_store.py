"""Reports in PostgreSQL: planned from the rollups, claimed, answered.

Every method is a transaction of its own. Guards are in the database: one latest and one open
revision per bucket, one report in flight per provider, customer and meter are unique indexes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.engine import Engine, Row
from sqlalchemy.exc import IntegrityError

from billing.core.periods import Period
from billing.providers.port import ProviderAnswer, ProviderCause, UsageReport
from billing.providers.report_value import MAX_HOUR_VALUE
from billing.reporting import report_store_sql as queries
from billing.reporting.closed_periods import ClosedPeriods
from billing.reporting.destination import CustomerIds, Destination, Metered
from billing.reporting.listing import ReportListing
from billing.reporting.planner import Pass
from billing.reporting.usage_report import AttentionCause, SendOutcome

__all__ = ["Claimed", "CustomerIds", "Destination", "Metered", "ReportStore", "Sums"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A report to be sent, now in state ``sending``: this reporter's until its lease ends."""

    id: int
    claim: UUID
    customer: str
    report: UsageReport
    attempts: int
    outcome_unknown: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """A customer's SKU in a period, in microcredits: ``logged`` is the sum of the other five.

    ``unclaimed``: hours that are not closed, or not compared since they changed. ``carried``: to
    other periods, less what came from them; over all periods it adds up to 0. What came is part of
    the other terms.
    """

    customer: str
    sku: str
    logged: int
    accepted: int
    open: int
    parked: int
    unclaimed: int
    carried: int

    @property
    def off_by(self) -> int:
        """The log less the other five terms; 0 is the invariant."""
        known = self.accepted + self.open + self.parked + self.unclaimed + self.carried
        return self.logged - known


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to a claimed report, and what becomes of it.

    ``next_at``: it is not sent again before. ``confirm_at``: it is read back then, where it was
    accepted or may have arrived.
    """

    claimed: Claimed
    outcome: SendOutcome
    answer: ProviderAnswer
    now: datetime
    next_at: datetime
    confirm_at: datetime

    def parameters(self) -> dict[str, object]:
        """Parameters of the statement."""
        return {
            "id": self.claimed.id, "claim": self.claimed.claim,
            "state": self.outcome.state.value, "doubtful": self.outcome.outcome_unknown,
            "cause": self.answer.cause.value, "detail": self.answer.detail[:500],
            "now": self.now, "next_at": self.next_at, "confirm_at": self.confirm_at,
        }  # fmt: skip


class ReportStore(ReportListing):
    """The outbox of reports.

    Args:
        engine: PostgreSQL, as the owner role.

    Attributes:
        seals: The periods that providers have made final.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.closed_periods = ClosedPeriods(engine)

    def plan(self, destination: Destination, *, until: datetime, now: datetime) -> int:
        """Write down every revision and adjustment that is due for hours before ``until``.

        Reads the rollups and never the log. How far back it compares: ``depth_due``. While
        another reporter is at it, it does nothing.

        Returns:
            How many revisions were written.
        """
        return Pass(self._engine, destination, until=until, now=now).run()

    def recover(self, now: datetime) -> int:
        """Turn reports whose reporter is gone into unknown ones.

        Returns:
            How many were left behind in the middle of sending.
        """
        with self._engine.begin() as connection:
            return connection.execute(queries.RECLAIM, {"now": now}).rowcount

    def claim(
        self,
        provider: str,
        *,
        now: datetime,
        lease: timedelta,
        limit: int,
        after: str = "",
        blocked: Sequence[str] = (),
        too_old: datetime | None = None,
        known: Sequence[str] | None = None,
    ) -> Sequence[Claimed]:
        """Take reports to send: at most one per customer and meter, its oldest hour first.

        Nothing of a closed period.

        Args:
            provider: Whose.
            now: The time.
            lease: After it the report counts as left behind; well above a request's time-out.
            limit: The most to take.
            after: Customers up to this one come later: the next call goes on where this one ended.
            blocked: Meters that nothing may be sent to.
            too_old: What was never sent is not, for hours before this (``too_old_before``).
            known: The meters that were checked. What was never sent goes to no other: the plan
                writes it anew for the present one. None: any.
        """
        claim = uuid4()
        parameters = {
            "provider": provider, "now": now, "until": now + lease, "limit": limit,
            "after": after, "blocked": list(blocked), "claim": claim, "too_old": too_old,
            "known": None if known is None else list(known),
        }  # fmt: skip
        try:
            with self._engine.begin() as connection:
                rows = connection.execute(queries.CLAIM, parameters).all()
        except IntegrityError:
            # Another reporter took a report of the same customer and meter in this moment.
            return []
        return sorted((_claimed(row, claim) for row in rows), key=lambda found: found.customer)

    def answer_all(self, answered: Sequence[Answered]) -> None:
        """Note what became of claimed reports, in one transaction.

        Where a claim was lost meanwhile nothing is changed: whoever has it sends the same figure
        under the same identifier.
        """
        if not answered:
            return
        # In one order, so that two reporters never wait for each other in a circle.
        ordered = sorted(answered, key=lambda one: one.claimed.id)
        with self._engine.begin() as connection:
            connection.execute(queries.ANSWER, [one.parameters() for one in ordered])

    def release(self, claimed: Sequence[Claimed]) -> None:
        """Give back reports that were claimed and not sent."""
        if not claimed:
            return
        parameters = {"ids": [c.id for c in claimed], "claim": claimed[0].claim}
        with self._engine.begin() as connection:
            connection.execute(queries.RELEASE, parameters)

    def retry(self, report: int, *, now: datetime) -> bool:
        """A parked report is sent again, as it is; False where it is none or cannot be sent.

        Only a bucket's last revision can be, and only one that is complete.
        """
        parameters = {"id": report, "now": now, "largest": MAX_HOUR_VALUE}
        with self._engine.begin() as connection:
            return connection.execute(queries.RETRY, parameters).rowcount == 1

    def lift_hold(self, report: int, *, arrived: bool | None, now: datetime) -> bool:
        """Lift a hold by hand, or decide what nobody knew: whether a report arrived.

        Args:
            report: A bucket's last revision, held back by hand, or of unknown outcome.
            arrived: True: it was sent, and the provider has it; it is read back. False: it has it
                not, and the hour is reported anew, or carried. None: it is sent again as it is.
            now: The time.

        Returns:
            False where it is none of these, or cannot be.
        """
        statement, cause = {
            True: (queries.ARRIVED, ProviderCause.TAKEN.value),
            False: (queries.NEVER_ARRIVED, AttentionCause.NO_ANSWER.value),
            None: (queries.UNPARK, ""),
        }[arrived]
        parameters = {"id": report, "now": now, "cause": cause, "largest": MAX_HOUR_VALUE}
        with self._engine.begin() as connection:
            return connection.execute(statement, parameters).rowcount == 1

    def hold_back(self, report: int, detail: str) -> bool:
        """Hold back a report that is pending or unknown; False where it is neither."""
        parameters = {"id": report, "cause": AttentionCause.BY_HAND.value, "detail": detail[:500]}
        with self._engine.begin() as connection:
            return connection.execute(queries.PARK, parameters).rowcount == 1

    def oldest_open(self, provider: str) -> datetime | None:
        """The hour of the oldest report without its answer; None where there is none."""
        with self._engine.connect() as connection:
            found: datetime | None = connection.execute(
                queries.OLDEST_OPEN, {"provider": provider}
            ).scalar()
        return found

    def open_elsewhere(self, provider: str) -> Sequence[str]:
        """Other providers that reports were sent to and are without an answer."""
        with self._engine.connect() as connection:
            return list(
                connection.execute(queries.OPEN_ELSEWHERE, {"provider": provider}).scalars()
            )

    def sums(self, period: Period) -> Sequence[Sums]:
        """The invariant's terms per customer and SKU, from one snapshot."""
        parameters = {"start": period.start, "end": period.end}
        with self._engine.connect() as connection:
            rows = connection.execute(queries.SUMS, parameters).all()
        return [
            Sums(customer=row.customer_id, sku=row.sku_id, logged=int(row.logged),
                 accepted=int(row.accepted), open=int(row.open), parked=int(row.parked),
                 unclaimed=int(row.unclaimed), carried=int(row.carried))
            for row in rows
        ]  # fmt: skip


def _claimed(row: Row[Any], claim: UUID) -> Claimed:
    return Claimed(
        id=row.id,
        claim=claim,
        customer=row.customer_id,
        report=UsageReport(
            identifier=row.identifier,
            customer_ref=row.customer_ref,
            meter=row.meter,
            hour=row.hour,
            value=int(row.value),
            timestamp=row.event_at,
        ),
        attempts=row.attempts,
        outcome_unknown=row.doubtful,
    )
