"""Putting right what reconcile found: Redis and the rollups from the log, never the reverse.

What is repaired while work goes on must not lose what happens meanwhile. Holds are mended in one
step of Redis each; an account is rebuilt under the fence, with its open holds; a rollup is locked
before the log is summed up, so that a writer adds to it either before, and is summed up, or after.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Engine

from billing.core.clock import Clock, parse_instant
from billing.core.event_ids import lowest_id
from billing.core.periods import month_of
from billing.core.reservation import QuotaStore
from billing.core.usage_event import UsageEvent
from billing.postgres.locks import AdvisoryLock, try_lock
from billing.postgres.partition_detaching import is_attached
from billing.quota.account_loader import AccountLoader
from billing.quota.hold_repair import HoldRepair, RepairedHolds, Wrong
from billing.reconciliation.checks import InvariantChecks
from billing.reconciliation.discrepancies import (
    DiscrepancyState,
    DiscrepancyStore,
    RecordedDiscrepancy,
)
from billing.reconciliation.in_flight import InFlightUsage
from billing.reconciliation.invariants import Discrepancy, DiscrepancyKind
from billing.reconciliation.remedies import (
    DiscrepancyCause,
    OnTheWay,
    Remedy,
    cause_of,
    must_wait,
    remedy_of,
)
from billing.reconciliation.tamper_check import TamperCheck, named
from billing.transport.publishers import Publisher

_log = structlog.get_logger(__name__)

READ_AGAIN: Final = timedelta(seconds=3)
"""What is between outbox and log looks like a difference; a fault is there the second time, too."""
LOGGED_WITHIN: Final = timedelta(seconds=20)
"""How long an event that was published again may take to the log."""
_POLL_SECONDS: Final = 0.2
SWEPT_AT_ONCE: Final = 500
_NOT_AS_LOGGED: Final = "its lines are not those that were logged, see billing verify: {}"
_LEAVING: Final = "its month is being archived: the log has not got all of its lines"

_LOCK_BUCKET: Final = sa.text(
    """
    INSERT INTO usage_hourly AS kept (customer_id, hour, sku_id, outcome, reason, events, quantity,
        amount_microcredits, shortfall_microcredits, cost_micros)
    VALUES (:customer, :hour, :sku, :outcome, :reason, 0, 0, 0, 0, 0)
    ON CONFLICT (customer_id, hour, sku_id, outcome, reason) DO UPDATE SET events = kept.events
    """
)
_ROLL_UP: Final = sa.text(
    """
    UPDATE usage_hourly SET events = s.events, quantity = s.quantity,
        amount_microcredits = s.amount, shortfall_microcredits = s.shortfall, cost_micros = s.cost
    FROM (
        SELECT count(*) AS events, coalesce(sum(quantity), 0) AS quantity,
            coalesce(sum(amount_microcredits), 0) AS amount,
            coalesce(sum(shortfall_microcredits), 0) AS shortfall,
            coalesce(sum(cost_micros), 0) AS cost
        FROM usage_events
        WHERE customer_id = :customer AND id >= :lowest AND id < :end AND sku_id = :sku
            AND outcome = :outcome AND reason = :reason
    ) AS s
    WHERE customer_id = :customer AND hour = :hour AND sku_id = :sku AND outcome = :outcome
        AND reason = :reason
    """
)
_DROP_EMPTY: Final = sa.text(
    """
    DELETE FROM usage_hourly WHERE customer_id = :customer AND hour = :hour AND sku_id = :sku
        AND outcome = :outcome AND reason = :reason AND events = 0
    """
)
_SYNC_GRANTS: Final = sa.text(
    """
    UPDATE quota_fences SET version = version + 1, granted_microcredits = (
        SELECT coalesce(sum(amount_microcredits), 0) FROM grants WHERE customer_id = :customer)
    WHERE customer_id = :customer
    """
)


class Repair:
    """Finds what does not agree, and with ``repair`` puts it right.

    Args:
        engine: PostgreSQL, as the owner role.
        quota: Expires what is over time.
        checks: Finds discrepancies.
        in_flight: Finds events that were lost between outbox and log.
        account_loader: Rebuilds accounts.
        hold_repair: Mends holds.
        publisher: Makes a connection to publish lost events through.
        discrepancies: The table that findings are written to.
        clock: The time.
        wait: Waits for so many seconds; between readings.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        quota: QuotaStore,
        checks: InvariantChecks,
        in_flight: InFlightUsage,
        account_loader: AccountLoader,
        hold_repair: HoldRepair,
        publisher: Callable[[], Publisher],
        discrepancies: DiscrepancyStore,
        clock: Clock,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._engine = engine
        self._tamper_check = TamperCheck(engine, clock)
        self._quota = quota
        self._checks = checks
        self._in_flight = in_flight
        self._account_loader = account_loader
        self._hold_repair = hold_repair
        self._publisher = publisher
        self._discrepancies = discrepancies
        self._clock = clock
        self._wait = wait

    def run(self, since: datetime, *, repair: bool) -> list[RecordedDiscrepancy]:
        """Look twice, put right what stands, look again, and write it down.

        Args:
            since: Lines and buckets are compared from here on; totals over all time.
            repair: Put right what a rule can; else only tell.

        Raises:
            QuotaUnavailable: Redis did not answer.
            OutboxUnavailable: The same.
        """
        lost = self._persisting_lost()
        found = [*self._persisting(since), *map(_lost_event, lost)]
        of_customer = Counter[str]()
        for event in lost:
            of_customer[event.customer] += event.amount_microcredits
        findings = [
            self._judged_first(
                RecordedDiscrepancy(
                    discrepancy=each,
                    cause=cause_of(each, of_customer[each.customer]),
                    remedy=remedy_of(each),
                    state=DiscrepancyState.FOUND,
                )
            )
            for each in found
        ]
        if repair and findings:
            with self._engine.begin() as guard:
                # While another process repairs, this one only reports.
                if try_lock(guard, AdvisoryLock.REPAIR):
                    findings = self._repaired(findings, lost, since)
        self._discrepancies.write(findings, self._clock.now())
        for finding in findings:
            _tell(finding)
        return findings

    def _judged_first(self, finding: RecordedDiscrepancy) -> RecordedDiscrepancy:
        """As it is, but that a rollup is not made to agree with a log that was tampered with."""
        if finding.remedy is not Remedy.ROLL_UP or not finding.discrepancy.bucket:
            return finding
        told = self._tamper_check.tampered(
            parse_instant(finding.discrepancy.bucket[0], field="hour")
        )
        if not told:
            return finding
        return replace(
            finding,
            cause=DiscrepancyCause.LOG_CHANGED,
            remedy=Remedy.BY_HAND,
            note=_NOT_AS_LOGGED.format(named(told)),
        )

    def _persisting(self, since: datetime) -> list[Discrepancy]:
        first = self._checks.run(since)
        if not first:
            return []
        self._wait(READ_AGAIN.total_seconds())
        before = set(map(_identity_with_amount, first))
        return [each for each in self._checks.run(since) if _identity_with_amount(each) in before]

    def _persisting_lost(self) -> list[UsageEvent]:
        first = self._in_flight.missing()
        if not first:
            return []
        self._wait(READ_AGAIN.total_seconds())
        again = {event.id for event in self._in_flight.missing()}
        # A row that somebody removed was charged and rolled up once: logged anew it would be twice.
        return self._tamper_check.never_logged([event for event in first if event.id in again])

    def _repaired(
        self, findings: Sequence[RecordedDiscrepancy], lost: Sequence[UsageEvent], since: datetime
    ) -> list[RecordedDiscrepancy]:
        notes: dict[Discrepancy, str] = {}
        waits: set[Discrepancy] = set()
        if lost:
            self._publish_again(lost)
        mend_for = _customers(findings, Remedy.MEND_HOLDS)
        for customer in mend_for:
            mended = self._hold_repair.mend(customer)
            note = ", ".join(map(_told, mended)) or "no hold was wrong"
            notes |= {f.discrepancy: note for f in findings if _is(f, Remedy.MEND_HOLDS, customer)}
        if mend_for:
            # What no sweep could find before is over time, perhaps.
            self._quota.expire(SWEPT_AT_ONCE)
        for finding in findings:
            bucket = finding.remedy is Remedy.ROLL_UP and finding.discrepancy.bucket
            if bucket and not self._roll_up(finding.discrepancy):
                waits.add(finding.discrepancy)
                notes[finding.discrepancy] = _LEAVING
        for customer in _customers(findings, Remedy.SYNC_GRANTS):
            self._sync_grants(customer)
        for customer in _customers(findings, Remedy.REBUILD):
            waits |= self._rebuild(customer, findings, since, notes)
        again = [*self._persisting(since), *map(_lost_event, self._in_flight.missing())]
        left = {_name(each) for each in again}
        return [self._judged(finding, notes, waits, left) for finding in findings]

    def _publish_again(self, lost: Sequence[UsageEvent]) -> None:
        publisher = self._publisher()
        publisher.publish(lost)
        deadline = time.monotonic() + LOGGED_WITHIN.total_seconds()
        while self._in_flight.missing() or self._in_flight.depth() != 0:
            if time.monotonic() > deadline:
                # Published and confirmed, so not lost; whether it was logged, the next run tells.
                return
            self._wait(_POLL_SECONDS)

    def _rebuild(
        self,
        customer: str,
        findings: Sequence[RecordedDiscrepancy],
        since: datetime,
        notes: dict[Discrepancy, str],
    ) -> set[Discrepancy]:
        """Rebuild an account; returns the discrepancies whose repair has to wait."""
        # What lost events had caused has gone with them.
        standing = set(self._checks.books_of(customer, since))
        found = (each.discrepancy for each in findings if _is(each, Remedy.REBUILD, customer))
        own = [each for each in found if each in standing]
        if not own:
            return set()
        way = OnTheWay(
            in_outbox=sum(1 for _ in self._in_flight.waiting(customer)),
            in_queue=self._in_flight.depth(),
        )
        waiting = {each for each in own if must_wait(each, way)}
        if waiting:
            notes |= {each: f"usage is on its way ({way.told()})" for each in waiting}
            return waiting
        outcome = self._account_loader.rebuild(customer, force=True)
        notes |= dict.fromkeys(own, f"account rebuilt: {outcome.value}")
        return set()

    def _roll_up(self, discrepancy: Discrepancy) -> bool:
        """Sum a bucket up again; False, and nothing is done, where its month leaves the log."""
        hour_text, sku, outcome, reason = discrepancy.bucket
        hour = parse_instant(hour_text, field="hour")
        parameters: dict[str, Any] = {
            "customer": discrepancy.customer,
            "hour": hour,
            "sku": sku,
            "outcome": outcome,
            "reason": reason,
            "lowest": lowest_id(hour),
            "end": lowest_id(hour + timedelta(hours=1)),
        }
        month = month_of(hour)
        with self._engine.connect() as connection, connection.begin() as transaction:
            # A writer that has inserted lines and not yet added them up waits for this row; its
            # lines are not seen by the sum, and it adds them when this has committed.
            was_there = is_attached(connection, month)
            connection.execute(_LOCK_BUCKET, parameters)
            connection.execute(_ROLL_UP, parameters)
            connection.execute(_DROP_EMPTY, parameters)
            # Without its lines a month sums up to nothing. It may leave at any moment, so it has to
            # be there before and after they were summed up.
            if not (was_there and is_attached(connection, month)):
                transaction.rollback()
                return False
        return True

    def _sync_grants(self, customer: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(_SYNC_GRANTS, {"customer": customer})
        self._account_loader.sync(customer)

    def _judged(
        self,
        finding: RecordedDiscrepancy,
        notes: dict[Discrepancy, str],
        waits: set[Discrepancy],
        left: set[tuple[str, ...]],
    ) -> RecordedDiscrepancy:
        state = DiscrepancyState.REPAIRED
        is_left = _name(finding.discrepancy) in left
        if finding.discrepancy in waits or (is_left and _follows(finding, waits)):
            state = DiscrepancyState.WAITING
        elif is_left:
            state = (
                DiscrepancyState.FOUND
                if finding.remedy is Remedy.BY_HAND
                else DiscrepancyState.FAILED
            )
        return RecordedDiscrepancy(
            discrepancy=finding.discrepancy,
            cause=finding.cause,
            remedy=finding.remedy,
            state=state,
            note=notes.get(finding.discrepancy, finding.note),
        )


def _follows(finding: RecordedDiscrepancy, waits: set[Discrepancy]) -> bool:
    """Whether it is what is available of a balance whose repair has to wait."""
    owners = {each.customer for each in waits}
    discrepancy = finding.discrepancy
    return discrepancy.kind is DiscrepancyKind.AVAILABLE and discrepancy.customer in owners


def _identity_with_amount(discrepancy: Discrepancy) -> tuple[object, ...]:
    """What has to be the same in two readings for a fault to stand.

    Lines and their rollup commit together, so a rollup that differs is a fault whatever is written
    meanwhile. Elsewhere usage on its way looks like a fault, of another amount each time.
    """
    name = _name(discrepancy)
    if discrepancy.kind is DiscrepancyKind.ROLLUP:
        return name
    return (*name, discrepancy.found - discrepancy.expected)


def _name(discrepancy: Discrepancy) -> tuple[str, ...]:
    """What it is about, whatever its figures: a repair may change them and still have failed."""
    about = discrepancy.bucket or (discrepancy.detail,)
    return (discrepancy.kind.value, discrepancy.customer, *about)


def _customers(findings: Iterable[RecordedDiscrepancy], remedy: Remedy) -> list[str]:
    return sorted({each.discrepancy.customer for each in findings if each.remedy is remedy})


def _is(finding: RecordedDiscrepancy, remedy: Remedy, customer: str) -> bool:
    return finding.remedy is remedy and finding.discrepancy.customer == customer


def _lost_event(event: UsageEvent) -> Discrepancy:
    return Discrepancy(
        kind=DiscrepancyKind.LOST_EVENT,
        customer=event.customer,
        expected=event.amount_microcredits,
        found=0,
        detail=f"task {event.task_id}, line {event.line}, event {event.id}",
    )


def _told(mended: RepairedHolds) -> str:
    if mended.wrong is Wrong.HELD:
        return f"held corrected by {mended.amount_microcredits:+,} microcredits"
    return f"{mended.wrong.value} hold of task {mended.task_id}"


def _tell(finding: RecordedDiscrepancy) -> None:
    told = _log.warning if finding.state is DiscrepancyState.REPAIRED else _log.error
    told(
        "the books disagreed"
        if finding.state is DiscrepancyState.REPAIRED
        else "the books disagree",
        **finding.as_dict(),
    )
