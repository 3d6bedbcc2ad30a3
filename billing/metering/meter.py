"""The meter: what happens before a task runs and after, whichever server is away.

Money is closed by default: where the balance cannot be known, the body does not run, unless its SKU
says ``allow``. Usage is never dropped: what cannot reach the outbox is published directly, and what
cannot be published is spooled to the node's disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil
from uuid import UUID

import structlog
from msgspec import structs

from billing.core.admission import Admission, TaskFacts
from billing.core.clock import Clock
from billing.core.credit_lease import LeasedAdmission
from billing.core.errors import DenialReason, NotFound, QuotaUnavailable
from billing.core.event_ids import event_id
from billing.core.failpoints import reach
from billing.core.reservation import (
    TIME_LIMIT_MARGIN_SECONDS,
    HoldRequest,
    HoldState,
    LoadOutcome,
    ReleaseCause,
    ReleaseOutcome,
    Reservation,
    ReserveOutcome,
    Settlement,
    SettleOutcome,
)
from billing.core.sku import AdmissionPolicy, FailurePolicy, Sku, rate
from billing.core.usage_event import Outcome, UsageEvent, failed_line, usage_line
from billing.metering.fallback import Fallback
from billing.metering.lease_manager import LeaseManager
from billing.metering.settlement_amounts import are_of, as_asked, decided
from billing.metering.usage_recorder import UsageRecorder
from billing.quota.checks import check_lines
from billing.quota.port import QuotaStore
from billing.transport.journal import EventKeeper
from billing.transport.publishers import Publisher
from billing.transport.settled_figures import Encodable

log = structlog.get_logger(__name__)

_LOAD_ATTEMPTS = 3


class Meter:
    """Admits tasks and settles them. One per process; safe to use from several threads.

    Args:
        quota: The quota store.
        skus: Gives the SKU of an id, or raises ``NotFound``.
        refresh: Loads a customer's account from PostgreSQL into the quota store. Raises
            ``NotFound`` for an unknown customer and ``QuotaUnavailable`` when PostgreSQL is away.
        publisher: The way out when Redis is away.
        journal: A second copy of what is in the outbox, in case Redis loses its data.
        spool: The way out when RabbitMQ is away too.
        clock: The time.
        hold_ttl_seconds: How long a hold stays open.
        currency: Of provider costs.
        leases: This process's, for SKUs that are leased; without it all are admitted exactly.
    """

    def __init__(
        self,
        *,
        quota: QuotaStore,
        skus: Callable[[str], Sku],
        refresh: Callable[[str], LoadOutcome],
        publisher: Publisher,
        journal: EventKeeper,
        spool: EventKeeper,
        clock: Clock,
        hold_ttl_seconds: int,
        currency: str,
        leases: LeaseManager | None = None,
    ) -> None:
        self._quota = quota
        self._leases = leases
        self._skus = skus
        self._refresh = refresh
        self._journal = journal
        self._fallback = Fallback(publisher, spool)
        self._clock = clock
        self._hold_ttl_seconds = hold_ttl_seconds
        self._currency = currency

    def recorder(self, sku: Sku) -> UsageRecorder:
        """A recorder for one run of a task of ``sku``."""
        return UsageRecorder(sku, self._skus)

    def admit(
        self,
        facts: TaskFacts,
        sku_id: str,
        quantity: int | None,
        *,
        time_limit_seconds: float = 0,
        may_repeat: bool = False,
    ) -> Admission:
        """Hold what the task may cost, or say why it must not run.

        A refusal is not yet recorded: a task that will come back is not a line on a bill. See
        ``record_denial``.

        Args:
            facts: The task.
            sku_id: What it is sold as.
            quantity: Units to hold; the SKU's own where None.
            time_limit_seconds: This message's own hard limit; its hold outlives that.
            may_repeat: The task may have been settled before, or have a hold: never from a lease.

        Raises:
            NotFound: There is no such SKU, or it has no price.
            InvalidValue: The quantity cannot be.
        """
        sku = self._skus(sku_id)
        units = sku.hold_quantity if quantity is None else quantity
        needed = rate(units, sku.unit_price_at(facts.metered_at))
        reach("hold.before")
        started_at = self._clock.now()
        base = Admission(facts=facts, sku=sku, started_at=started_at, needed_microcredits=needed)
        ttl_seconds = max(
            self._hold_ttl_seconds, ceil(time_limit_seconds) + TIME_LIMIT_MARGIN_SECONDS + 1
        )
        try:
            # A lease lives no longer than usual, so neither may a run under it.
            if not may_repeat and ttl_seconds == self._hold_ttl_seconds:
                leased = self._from_lease(base)
                if leased is not None:
                    reach("hold.after")
                    return base.admitted_from(leased)
            reservation = self._reserve(
                HoldRequest(
                    task_id=facts.task_id,
                    customer=facts.customer,
                    sku=sku.id,
                    amount_microcredits=needed,
                    ttl_seconds=ttl_seconds,
                    mark=self._mark(facts, sku),
                )
            )
        except NotFound:
            return replace(base, reason=DenialReason.UNKNOWN_CUSTOMER)
        except QuotaUnavailable as error:
            return self._fallback.admit(base, error)
        self._fallback.redis_answered(sku)
        reach("hold.after")
        return replace(
            base,
            reason=reservation.reason,
            number=reservation.admission,
            held_microcredits=reservation.held_microcredits,
            left_microcredits=reservation.left_microcredits,
            repeat=reservation.outcome is ReserveOutcome.ALREADY_SETTLED,
            contended=self._is_contended(facts.customer, sku, reservation.reason),
        )

    def record_denial(self, admission: Admission) -> None:
        """Put the refusal on record: an event with its reason and cost 0."""
        self._append(admission.denial(currency=self._currency))

    def record_attempt(self, admission: Admission, recorder: UsageRecorder) -> None:
        """Record what an attempt cost us that asked to be run again; its hold stays.

        What was admitted from a lease is given back to it: the next attempt holds its own.
        """
        events = []
        if recorder.cost_micros:
            now = self._clock.now()
            events = [recorder.retried(admission, currency=self._currency, finished_at=now)]
        if admission.from_lease is not None:
            self._end_leased(admission.from_lease, events)
        elif events:
            self._append(events[0])

    def hand_over(self, admission: Admission) -> None:
        """Give a lease's part back where another task takes this one's place, id and hold."""
        if admission.from_lease is not None:
            self._end_leased(admission.from_lease, [])

    def settle(self, admission: Admission, recorder: UsageRecorder) -> Settlement:
        """Charge what a body that succeeded used, and put its events into the outbox.

        Admitted from a lease it is on this node's disk when this returns, and soon in the outbox.
        """
        reach("body.after")
        return self._settle(admission, self._events(admission, recorder, Outcome.SUCCEEDED, ""))

    def fail(self, admission: Admission, recorder: UsageRecorder, cause: ReleaseCause) -> None:
        """Charge or release a body that ended without success, by the SKU's policy."""
        leased = admission.from_lease
        if leased is not None and leased.run is not None:
            # The settlement was interrupted after it was decided: it stands.
            self._end_leased(leased, [])
            return
        if admission.sku.failure_policy is FailurePolicy.CHARGE and cause in _CHARGEABLE:
            events = self._events(admission, recorder, Outcome.FAILED, cause.value)
            if any(event.amount_microcredits for event in events):
                self._settle(admission, events)
                return
        event = recorder.failure(
            admission,
            reason=cause.value,
            currency=self._currency,
            finished_at=self._clock.now(),
        )
        facts = admission.facts
        if leased is not None:
            self._end_leased(leased, [event])
            return
        if admission.degraded:
            self._fallback.deliver([event])
            return
        try:
            outcome = self._quota.release(facts.customer, facts.task_id, cause, event)
            unheld = outcome is not ReleaseOutcome.RELEASED and self._ended_unrecorded(facts)
        except QuotaUnavailable:
            # The hold will expire; the failure itself is still worth a line.
            self._fallback.deliver([event])
            return
        if outcome is ReleaseOutcome.RELEASED:
            self._keep([event])
        elif unheld:
            self._append(event)

    def lost(self, facts: TaskFacts, sku_id: str, cause: ReleaseCause) -> ReleaseOutcome:
        """Give back the hold of a run whose end only the worker's main process could see.

        Never guesses a charge: what a lost child had used is not known. Asks Redis alone, not even
        the catalogue: that process must not wait for PostgreSQL.

        Raises:
            QuotaUnavailable: Redis did not answer; the hold will expire by itself.
        """
        hold = self._quota.hold(facts.customer, facts.task_id)
        event = facts.event(
            sku=sku_id,
            line=failed_line(sku_id, hold.admission if hold else 0),
            outcome=Outcome.FAILED,
            reason=cause.value,
            held_microcredits=hold.held_microcredits if hold else 0,
            currency=self._currency,
            finished_at=self._clock.now(),
        )
        outcome = self._quota.release(facts.customer, facts.task_id, cause, event)
        if outcome is ReleaseOutcome.RELEASED:
            self._keep([event])
        return outcome

    def _from_lease(self, base: Admission) -> LeasedAdmission | None:
        """Of a lease; None where the quota store has to be asked for this task.

        Raises:
            QuotaUnavailable: The store did not answer, and nothing is leased.
        """
        if self._leases is None or base.sku.admission is not AdmissionPolicy.LEASED:
            return None
        customer = base.facts.customer
        return self._leases.admit(customer, base.sku.id, base.needed_microcredits)

    def _end_leased(self, leased: LeasedAdmission, events: Sequence[UsageEvent]) -> None:
        if self._leases is None:
            raise AssertionError("a leased admission is of a lease manager")
        self._leases.end(leased, events)

    def _is_contended(self, customer: str, sku: Sku, reason: DenialReason | None) -> bool:
        """Whether what was refused may be there in a moment: leased, and then not used."""
        if sku.admission is not AdmissionPolicy.LEASED or reason not in _SCARCE:
            return False
        try:
            account = self._quota.account(customer)
        except QuotaUnavailable:
            return False
        return account is not None and account.leases > 0

    def _mark(self, facts: TaskFacts, sku: Sku) -> UUID | None:
        """Where leases settle tasks of the SKU too, what they would mark this one by."""
        if sku.admission is not AdmissionPolicy.LEASED:
            return None
        return event_id(facts.task_id, usage_line(sku.id), facts.metered_at)

    def _ended_unrecorded(self, facts: TaskFacts) -> bool:
        """Whether the hold expired, or was lost with Redis's data, so that nobody wrote a line."""
        hold = self._quota.hold(facts.customer, facts.task_id)
        return hold is None or hold.state is HoldState.EXPIRED

    def _reserve(self, request: HoldRequest) -> Reservation:
        for _ in range(_LOAD_ATTEMPTS):
            reservation = self._quota.reserve(request)
            if reservation.outcome is not ReserveOutcome.UNKNOWN_BALANCE:
                return reservation
            if self._refresh(request.customer) is LoadOutcome.QUARANTINED:
                raise QuotaUnavailable(
                    f"the balance of {request.customer} was lost and is being rebuilt; "
                    "nothing is admitted until the events on their way are in the log"
                )
        raise QuotaUnavailable(f"the balance of {request.customer} could not be loaded")

    def _events(
        self, admission: Admission, recorder: UsageRecorder, outcome: Outcome, reason: str
    ) -> list[UsageEvent]:
        return recorder.events(
            admission,
            outcome=outcome,
            reason=reason,
            currency=self._currency,
            finished_at=self._clock.now(),
        )

    def _settle(self, admission: Admission, events: Sequence[UsageEvent]) -> Settlement:
        facts = admission.facts
        if admission.from_lease is not None:
            check_lines(facts.customer, facts.task_id, events)
            self._end_leased(admission.from_lease, events)
            reach("settle.after")
            # The store decides what is charged when it settles.
            return Settlement(outcome=SettleOutcome.LEASED, lines=(), quota_epoch=0)
        marked = admission.sku.admission is AdmissionPolicy.LEASED
        try:
            settlement, is_ours = self._settle_twice(facts, events, marked=marked)
        except QuotaUnavailable:
            settlement = as_asked(SettleOutcome.UNCOUNTED, events)
            self._fallback.deliver([structs.replace(event, degraded=True) for event in events])
            reach("settle.after")
            return settlement
        reach("settle.after")
        if is_ours and not admission.repeat:
            self._keep(decided(events, settlement))
        return settlement

    def _settle_twice(
        self, facts: TaskFacts, events: Sequence[UsageEvent], *, marked: bool
    ) -> tuple[Settlement, bool]:
        """One repeat: a settle that timed out may have happened, and asking again is harmless.

        Returns:
            The settlement, and whether it put these very events into the outbox.
        """
        customer, task_id = facts.customer, facts.task_id
        try:
            settlement = self._quota.settle(customer, task_id, events, marked=marked)
        except QuotaUnavailable:
            settlement = self._quota.settle(customer, task_id, events, marked=marked)
            # Where it exists, our own first try was it, unless the figures are another run's.
            return settlement, are_of(events, settlement)
        return settlement, settlement.outcome is not SettleOutcome.EXISTS

    def _append(self, event: UsageEvent) -> None:
        """An event of amount 0: into the outbox, or else delivered."""
        try:
            self._quota.append(event.customer, event)
        except QuotaUnavailable:
            self._fallback.deliver([event])
        else:
            self._keep([event])

    def _keep(self, events: Sequence[Encodable]) -> None:
        """Second copy. Its failure must not undo a settlement that stands."""
        try:
            self._journal.append(events)
        except OSError as error:
            # Without its traceback: it says where, and that is always here.
            log.error(  # noqa: TRY400 - as the line above says
                "journal_not_writable",
                money="nothing is lost unless Redis loses its data before the relay has sent them",
                remedy="free or repair the disk of WEIGHBRIDGE_SPOOL_DIR",
                error=str(error),
            )


_SCARCE = frozenset(
    {
        DenialReason.INSUFFICIENT_CREDITS,
        DenialReason.BUDGET_EXCEEDED,
        DenialReason.SKU_BUDGET_EXCEEDED,
    }
)
"""Refusals for want of something that others may have leased."""

_CHARGEABLE = frozenset(
    {
        ReleaseCause.EXCEPTION,
        ReleaseCause.SOFT_TIME_LIMIT,
        ReleaseCause.HARD_TIME_LIMIT,
        ReleaseCause.EXITED,
    }
)
"""Ends that a failure policy of ``charge`` charges: the body itself failed. A body that says Ignore
or Reject, is revoked, or is lost with its child is not charged."""
