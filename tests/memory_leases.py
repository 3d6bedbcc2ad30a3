"""A quota store in memory that has leases too, for tests of the processes that hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from billing.core.clock import Clock
from billing.core.credit_lease import (
    ENDED_SECONDS,
    SHARE,
    BatchSettlement,
    LeasedBatch,
    LeasedRun,
    LeaseGrant,
    LeaseOutcome,
    LeaseRequest,
    RunFigures,
    check_lease,
)
from billing.core.errors import WeighbridgeError
from billing.core.reservation import (
    ALL_SKUS,
    AccountView,
    HoldRequest,
    HoldState,
    LineFigures,
    Reservation,
    ReserveOutcome,
    Settlement,
    SettleOutcome,
)
from billing.core.usage_event import UsageEvent
from billing.quota.checks import check_batch, check_lines
from billing.quota.memory_records import Account, Hold
from billing.quota.memory_store import MemoryQuotaStore

_MILLISECONDS: Final = 1000


def chunk_of(room: int, holders: int, wish: int, least: int) -> int | None:
    """What one lease gets of what a customer has, or None where that is too little to be of use.

    The share shrinks with the balance until it is less than one task, and what is left then is
    admitted task by task. What leases strand is so bounded by what was there: each gets at most
    ``room / (SHARE * holders)``.

    Args:
        room: What balance and budgets leave, what the lease has free included.
        holders: Leases of the customer, this one included.
        wish: What is asked for.
        least: The least that is of use: one task's worth.
    """
    if room < 0:
        return None
    chunk = min(wish, room // (SHARE * holders))
    return chunk if chunk >= least else None


@dataclass(slots=True)
class LeaseHold(Hold):
    """A lease's hold: the ``number`` of its last request, and what that was ``granted``."""

    number: int = 0
    granted: int = 0


class MemoryLeaseStore(MemoryQuotaStore):
    """``MemoryQuotaStore`` with leases: what Redis does, held to the same contract suite.

    The product has no leases in memory; tests of processes with leases run on this one, because its
    time is theirs.
    """

    _done: dict[tuple[str, UUID], int]

    def __init__(self, clock: Clock, **options: int) -> None:
        super().__init__(clock, **options)
        self._done = {}

    def reserve(self, request: HoldRequest) -> Reservation:
        """As ``MemoryQuotaStore``; a task that a lease settled is settled."""
        with self._lock:
            now_ms = self._now_ms()
            if request.mark is None or not self._is_done(request.customer, request.mark, now_ms):
                return super().reserve(request)
            hold = self._find(request.customer, request.task_id, now_ms)
            account = self._accounts.get(request.customer)
            return Reservation(
                outcome=ReserveOutcome.ALREADY_SETTLED,
                admission=hold.admission if hold else 0,
                left_microcredits=max(account.available, 0) if account else 0,
            )

    def settle(
        self,
        customer: str,
        task_id: str,
        events: Sequence[UsageEvent],
        *,
        marked: bool = False,
    ) -> Settlement:
        """As ``MemoryQuotaStore``; a task that a lease settled exists, without figures."""
        with self._lock:
            now_ms = self._now_ms()
            hold = self._find(customer, task_id, now_ms)
            is_settled = hold is not None and hold.state is HoldState.SETTLED
            if not is_settled and marked and events:
                check_lines(customer, task_id, events)
                if not self._mark_done(customer, events[0].id, now_ms):
                    is_open = hold is not None and hold.state is HoldState.HELD
                    account = self._accounts.get(customer)
                    return self._settled_by_a_lease(hold if is_open else None, account, now_ms)
            return super().settle(customer, task_id, events, marked=marked)

    def account(self, customer: str) -> AccountView | None:
        """As ``MemoryQuotaStore``, with the number of leases."""
        with self._lock:
            view = super().account(customer)
            return view and replace(view, leases=self._leases(customer))

    def _leases(self, customer: str) -> int:
        return sum(
            isinstance(hold, LeaseHold) and hold.customer == customer
            for hold in self._open.values()
        )

    def lease(self, request: LeaseRequest) -> LeaseGrant:
        """Make the lease what is requested. See ``LeaseStore.lease``."""
        check_lease(request)
        with self._lock:
            now_ms = self._now_ms()
            hold = self._find(request.customer, request.lease_id, now_ms)
            account = self._accounts.get(request.customer)
            assert hold is None or isinstance(hold, LeaseHold)
            if hold is None and request.number == 1:
                return self._open_lease(request, account, now_ms)
            if hold is None:
                # Lost, or given back before its opening arrived: which must not open it any more.
                hold = LeaseHold(request.customer, request.lease_id, number=request.number)
                self._holds[hold.name] = hold
                hold.forget_at_ms = now_ms + ENDED_SECONDS * _MILLISECONDS
                return LeaseGrant(outcome=LeaseOutcome.ENDED)
            if hold.state is not HoldState.HELD or request.number < hold.number:
                return LeaseGrant(outcome=LeaseOutcome.ENDED)
            if request.number == hold.number:
                return _granted(hold.granted)
            return self._change_lease(request, hold, account, now_ms)

    def settle_leased(
        self, batches: Sequence[LeasedBatch]
    ) -> list[BatchSettlement | WeighbridgeError]:
        """Charge runs of leases. See ``LeaseStore.settle_leased``."""
        for batch in batches:
            check_batch(batch)
        return [self._settle_batch(batch) for batch in batches]

    def _open_lease(
        self, request: LeaseRequest, account: Account | None, now_ms: int
    ) -> LeaseGrant:
        if account is None or now_ms >= account.period_end_ms:
            return LeaseGrant(outcome=LeaseOutcome.UNKNOWN_BALANCE)
        chunk = _chunk(request, account, self._leases(request.customer) + 1, given_up=0)
        if chunk is None:
            return LeaseGrant(outcome=LeaseOutcome.SCARCE)
        hold = LeaseHold(
            request.customer,
            request.lease_id,
            state=HoldState.HELD,
            sku=request.sku,
            admission=1,
            period_start_ms=account.period_start_ms,
            epoch=account.epoch,
        )
        self._holds[hold.name] = self._open[hold.name] = hold
        _resize(hold, account, chunk)
        return _answered(request, hold, chunk, now_ms)

    def _change_lease(
        self, request: LeaseRequest, hold: LeaseHold, account: Account | None, now_ms: int
    ) -> LeaseGrant:
        # Never raised to what is to be kept: the store has no credits for what it does not hold.
        kept = min(request.keep_microcredits, hold.held)
        if request.wish_microcredits == 0 and kept == 0:
            self._close(hold, account)
            hold.state, hold.cause = HoldState.RELEASED, "returned"
            hold.number, hold.granted = request.number, 0
            hold.forget_at_ms = now_ms + ENDED_SECONDS * _MILLISECONDS
            return _granted(0)
        outcome, chunk = LeaseOutcome.GRANTED, 0
        if request.wish_microcredits and (account is None or now_ms >= account.period_end_ms):
            outcome = LeaseOutcome.UNKNOWN_BALANCE
        elif request.wish_microcredits and account is not None:
            if hold.period_start_ms != account.period_start_ms:
                outcome = LeaseOutcome.ENDED
            else:
                found = _chunk(
                    request,
                    account,
                    max(self._leases(request.customer), 1),
                    given_up=hold.held - kept,
                )
                outcome = LeaseOutcome.SCARCE if found is None else LeaseOutcome.GRANTED
                chunk = found or 0
        _resize(hold, account, kept + chunk)
        grant = _answered(request, hold, chunk, now_ms)
        return LeaseGrant(outcome=outcome, granted_microcredits=grant.granted_microcredits)

    def _settle_batch(self, batch: LeasedBatch) -> BatchSettlement:
        with self._lock:
            now_ms = self._now_ms()
            hold = self._find(batch.customer, batch.lease_id, now_ms)
            account = self._accounts.get(batch.customer)
            lease = hold if hold is not None and hold.state is HoldState.HELD else None
            figures = []
            for run in batch.runs:
                if not self._mark_done(batch.customer, run.events[0].id, now_ms):
                    figures.append(RunFigures(repeat=True))
                    continue
                lines = self._charge_run(run, lease, account)
                figures.append(RunFigures(repeat=False, lines=lines))
            epoch = account.epoch if account else 0
            return BatchSettlement(runs=tuple(figures), quota_epoch=epoch)

    def _charge_run(
        self, run: LeasedRun, lease: Hold | None, account: Account | None
    ) -> tuple[LineFigures, ...]:
        promised = min(run.promised_microcredits, lease.held) if lease else 0
        # What was promised is charged even where late usage has taken the balance below zero.
        room = None if account is None else promised + max(account.available, 0)
        if lease is not None:
            _resize(lease, account, lease.held - promised)
        return self._charge(lease, account, run.events, room, promised)

    def _settled_by_a_lease(
        self, hold: Hold | None, account: Account | None, now_ms: int
    ) -> Settlement:
        if hold is not None:
            self._close(hold, account)
            hold.state, hold.cause = HoldState.RELEASED, "settled by a lease"
            self._remember(hold, now_ms)
        return Settlement(outcome=SettleOutcome.EXISTS, lines=(), quota_epoch=0)

    def _is_done(self, customer: str, mark: UUID, now_ms: int) -> bool:
        return self._done.get((customer, mark), 0) > now_ms

    def _mark_done(self, customer: str, mark: UUID, now_ms: int) -> bool:
        """Mark a task as settled; False where it was."""
        if self._is_done(customer, mark, now_ms):
            return False
        # Remembered equally long, so the oldest come first.
        while self._done and next(iter(self._done.values())) <= now_ms:
            del self._done[next(iter(self._done))]
        self._done[customer, mark] = now_ms + self._remember_ms
        return True


def _chunk(request: LeaseRequest, account: Account, holders: int, *, given_up: int) -> int | None:
    if account.suspended:
        return None
    lefts = map(account.left_of, (ALL_SKUS, request.sku))
    room = min([account.available, *(left for left in lefts if left is not None)]) + given_up
    return chunk_of(room, holders, request.wish_microcredits, request.least_microcredits)


def _resize(hold: Hold, account: Account | None, held: int) -> None:
    change, hold.held = held - hold.held, held
    if account is not None:
        account.held += change
        if hold.period_start_ms == account.period_start_ms:
            account.count_spent(hold.sku, change)


def _answered(request: LeaseRequest, hold: LeaseHold, granted: int, now_ms: int) -> LeaseGrant:
    hold.number, hold.granted = request.number, granted
    hold.expires_at_ms = now_ms + request.ttl_seconds * _MILLISECONDS
    return _granted(granted)


def _granted(amount: int) -> LeaseGrant:
    return LeaseGrant(outcome=LeaseOutcome.GRANTED, granted_microcredits=amount)
