"""Repair of discrepancies: Redis and the rollups from the log, never the reverse.

A repair while work goes on must not lose what happens meanwhile. Holds are mended in one
step of Redis each; an account is rebuilt under the fence, with its open holds; a rollup is locked
before the log is summed up, so that a writer adds to it either before, and is summed up, or after.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Engine

from billing.core.clock import Clock, parse_instant
from billing.core.usage_event import UsageEvent
from billing.postgres.locks import AdvisoryLock, try_lock
from billing.quota.account_loader import AccountLoader
from billing.quota.hold_repair import HoldFault, HoldRepair, RepairedHolds
from billing.quota.port import QuotaStore
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
    Remedy,
    UnloggedUsage,
    cause_of,
    must_wait,
    remedy_of,
)
from billing.reconciliation.rollup_repair import sum_up_again
from billing.reconciliation.tamper_check import TamperCheck, named
from billing.transport.publishers import Publisher

_log = structlog.get_logger(__name__)

READ_AGAIN: Final = timedelta(seconds=3)
"""Wait between two readings: usage between outbox and log differs once, a fault both times."""
LOGGED_WITHIN: Final = timedelta(seconds=20)
"""The longest wait for an event that was published again to be logged."""
_POLL_SECONDS: Final = 0.2
SWEPT_AT_ONCE: Final = 500
_NOT_AS_LOGGED: Final = "its lines are not those that were logged, see billing verify: {}"
_LEAVING: Final = "its month is being archived: the log has not got all of its lines"

_SYNC_GRANTS: Final = sa.text(
    """
    UPDATE quota_fences SET version = version + 1, granted_microcredits = (
        SELECT coalesce(sum(amount_microcredits), 0) FROM grants WHERE customer_id = :customer)
    WHERE customer_id = :customer
    """
)


class Repair:
    """Finds discrepancies, repairs those that a rule can, and records them.

    Args:
        engine: PostgreSQL, as the owner role.
        quota: Expires overdue holds.
        checks: Finds discrepancies.
        in_flight: Finds events that were lost between outbox and log.
        account_loader: Rebuilds accounts.
        hold_repair: Mends holds.
        publisher: Makes a connection to publish lost events through.
        discrepancies: The table that records are written to.
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
        """Look twice, repair what persists, look again, and record all of it.

        Args:
            since: Lines and buckets are compared from here on; totals over all time.
            repair: Repair what a rule can; else only report.

        Raises:
            QuotaUnavailable: Redis did not answer.
            OutboxUnavailable: The same.
        """
        lost = self._persisting_lost()
        found = [*self._persisting(since), *map(_lost_event, lost)]
        of_customer = Counter[str]()
        for event in lost:
            of_customer[event.customer] += event.amount_microcredits
        records = [
            self._checked_for_tampering(
                RecordedDiscrepancy(
                    discrepancy=each,
                    cause=cause_of(each, of_customer[each.customer]),
                    remedy=remedy_of(each),
                    state=DiscrepancyState.FOUND,
                )
            )
            for each in found
        ]
        if repair and records:
            with self._engine.begin() as guard:
                # While another process repairs, this one only reports.
                if try_lock(guard, AdvisoryLock.REPAIR):
                    records = self._repaired(records, lost, since)
        self._discrepancies.write(records, self._clock.now())
        for record in records:
            _log_record(record)
        return records

    def _checked_for_tampering(self, record: RecordedDiscrepancy) -> RecordedDiscrepancy:
        """Leave a rollup to a person where the log was tampered with; the others pass unchanged."""
        if record.remedy is not Remedy.ROLL_UP or not record.discrepancy.bucket:
            return record
        hour = parse_instant(record.discrepancy.bucket[0], field="hour")
        tampered = self._tamper_check.tampered(hour)
        if not tampered:
            return record
        return replace(
            record,
            cause=DiscrepancyCause.LOG_CHANGED,
            remedy=Remedy.BY_HAND,
            note=_NOT_AS_LOGGED.format(named(tampered)),
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
        self, records: Sequence[RecordedDiscrepancy], lost: Sequence[UsageEvent], since: datetime
    ) -> list[RecordedDiscrepancy]:
        notes: dict[Discrepancy, str] = {}
        waits: set[Discrepancy] = set()
        if lost:
            self._publish_again(lost)
        mend_for = _customers(records, Remedy.MEND_HOLDS)
        for customer in mend_for:
            mended = self._hold_repair.repair(customer)
            note = ", ".join(map(_repaired_holds, mended)) or "no hold was wrong"
            notes |= {f.discrepancy: note for f in records if _is(f, Remedy.MEND_HOLDS, customer)}
        if mend_for:
            # A hold that no sweep could find before may be overdue.
            self._quota.expire(SWEPT_AT_ONCE)
        for record in records:
            bucket = record.remedy is Remedy.ROLL_UP and record.discrepancy.bucket
            if bucket and not sum_up_again(self._engine, record.discrepancy):
                waits.add(record.discrepancy)
                notes[record.discrepancy] = _LEAVING
        for customer in _customers(records, Remedy.SYNC_GRANTS):
            self._sync_grants(customer)
        for customer in _customers(records, Remedy.REBUILD):
            waits |= self._rebuild(customer, records, since, notes)
        again = [*self._persisting(since), *map(_lost_event, self._in_flight.missing())]
        left = {_name(each) for each in again}
        return [self._outcome(record, notes, waits, left) for record in records]

    def _publish_again(self, lost: Sequence[UsageEvent]) -> None:
        publisher = self._publisher()
        publisher.publish(lost)
        deadline = time.monotonic() + LOGGED_WITHIN.total_seconds()
        while self._in_flight.missing() or self._in_flight.depth() != 0:
            if time.monotonic() > deadline:
                # Published and confirmed, so not lost; the next run sees whether it was logged.
                return
            self._wait(_POLL_SECONDS)

    def _rebuild(
        self,
        customer: str,
        records: Sequence[RecordedDiscrepancy],
        since: datetime,
        notes: dict[Discrepancy, str],
    ) -> set[Discrepancy]:
        """Rebuild an account; returns the discrepancies whose repair has to wait."""
        # Differences that lost events had caused have gone with them.
        left = set(self._checks.of_customer(customer, since))
        found = (each.discrepancy for each in records if _is(each, Remedy.REBUILD, customer))
        own = [each for each in found if each in left]
        if not own:
            return set()
        unlogged = UnloggedUsage(
            in_outbox=sum(1 for _ in self._in_flight.waiting(customer)),
            in_queue=self._in_flight.depth(),
        )
        waiting = {each for each in own if must_wait(each, unlogged)}
        if waiting:
            notes |= dict.fromkeys(waiting, f"usage is on its way ({unlogged})")
            return waiting
        outcome = self._account_loader.rebuild(customer, force=True)
        notes |= dict.fromkeys(own, f"account rebuilt: {outcome.value}")
        return set()

    def _sync_grants(self, customer: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(_SYNC_GRANTS, {"customer": customer})
        self._account_loader.sync(customer)

    def _outcome(
        self,
        record: RecordedDiscrepancy,
        notes: dict[Discrepancy, str],
        waits: set[Discrepancy],
        left: set[tuple[str, ...]],
    ) -> RecordedDiscrepancy:
        state = DiscrepancyState.REPAIRED
        is_left = _name(record.discrepancy) in left
        if record.discrepancy in waits or (is_left and _follows(record, waits)):
            state = DiscrepancyState.WAITING
        elif is_left:
            state = (
                DiscrepancyState.FOUND
                if record.remedy is Remedy.BY_HAND
                else DiscrepancyState.FAILED
            )
        return RecordedDiscrepancy(
            discrepancy=record.discrepancy,
            cause=record.cause,
            remedy=record.remedy,
            state=state,
            note=notes.get(record.discrepancy, record.note),
        )


def _follows(record: RecordedDiscrepancy, waits: set[Discrepancy]) -> bool:
    """Whether it is the available credits of a balance whose repair has to wait."""
    owners = {each.customer for each in waits}
    discrepancy = record.discrepancy
    return discrepancy.kind is DiscrepancyKind.AVAILABLE and discrepancy.customer in owners


def _identity_with_amount(discrepancy: Discrepancy) -> tuple[object, ...]:
    """The part of a discrepancy that is the same in two readings of a fault.

    Lines and their rollup commit together, so a rollup that differs is a fault whatever is written
    meanwhile. Elsewhere usage on its way looks like a fault, of another amount each time.
    """
    name = _name(discrepancy)
    if discrepancy.kind is DiscrepancyKind.ROLLUP:
        return name
    return (*name, discrepancy.found - discrepancy.expected)


def _name(discrepancy: Discrepancy) -> tuple[str, ...]:
    """Kind, customer and bucket; no figures, which a repair may change and still have failed."""
    about = discrepancy.bucket or (discrepancy.detail,)
    return (discrepancy.kind.value, discrepancy.customer, *about)


def _customers(records: Iterable[RecordedDiscrepancy], remedy: Remedy) -> list[str]:
    return sorted({each.discrepancy.customer for each in records if each.remedy is remedy})


def _is(record: RecordedDiscrepancy, remedy: Remedy, customer: str) -> bool:
    return record.remedy is remedy and record.discrepancy.customer == customer


def _lost_event(event: UsageEvent) -> Discrepancy:
    return Discrepancy(
        kind=DiscrepancyKind.LOST_EVENT,
        customer=event.customer,
        expected=event.amount_microcredits,
        found=0,
        detail=f"task {event.task_id}, line {event.line}, event {event.id}",
    )


def _repaired_holds(mended: RepairedHolds) -> str:
    if mended.fault is HoldFault.HELD:
        return f"held corrected by {mended.amount_microcredits:+,} microcredits"
    return f"{mended.fault.value} hold of task {mended.task_id}"


def _log_record(record: RecordedDiscrepancy) -> None:
    if record.state is DiscrepancyState.REPAIRED:
        _log.warning("discrepancy_repaired", **record.as_dict())
    else:
        _log.error("discrepancy_found", **record.as_dict())
