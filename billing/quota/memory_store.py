"""The quota store in the memory of one process: Redis's contract, for eager mode and tests.

Not shared between processes and gone with this one; PostgreSQL stays the truth, as for Redis.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Final

from billing.core.clock import Clock, to_ms
from billing.core.errors import DenialReason
from billing.core.reservation import (
    SYNC_ONLY,
    AccountState,
    AccountView,
    HoldRequest,
    HoldState,
    HoldView,
    LineFigures,
    LoadOutcome,
    ReleaseCause,
    ReleaseOutcome,
    Reservation,
    ReserveOutcome,
    Settlement,
    SettleOutcome,
)
from billing.core.usage_event import UsageEvent
from billing.quota.checks import check_event, check_lines, check_request, check_state
from billing.quota.memory_records import (
    Account,
    Hold,
    Name,
    counts,
    denied,
    refusal_of,
    refusal_of_change,
)
from billing.redis.keys import shard_of

_MILLISECONDS: Final = 1000


class MemoryQuotaStore:
    """``QuotaStore`` in memory; safe to use from several threads. It has no leases.

    Args:
        clock: The time.
        hold_record_ttl_seconds: How long an ended hold is remembered.
        quarantine_seconds: As in ``RedisQuotaStore``; counted from the first load into a shard.

    Attributes:
        outbox: The events to be published, with the decided figures, oldest first. Whoever
            publishes them removes them.
    """

    def __init__(
        self, clock: Clock, *, hold_record_ttl_seconds: int = 259_200, quarantine_seconds: int = 0
    ) -> None:
        self._clock = clock
        self._remember_ms = hold_record_ttl_seconds * _MILLISECONDS
        self._quarantine_ms = quarantine_seconds * _MILLISECONDS
        self._lock = threading.RLock()
        self._accounts: dict[str, Account] = {}
        self._holds: dict[Name, Hold] = {}
        self._open: dict[Name, Hold] = {}
        self._ended: deque[Hold] = deque()
        self._born: dict[int, int] = {}
        self.outbox: list[UsageEvent] = []

    def reserve(self, request: HoldRequest) -> Reservation:
        """Hold the amount for the task, or say why not. See ``QuotaStore.reserve``."""
        check_request(request)
        with self._lock:
            now_ms = self._now_ms()
            hold = self._find(request.customer, request.task_id, now_ms)
            account = self._accounts.get(request.customer)
            available = max(account.available, 0) if account else 0
            if hold is not None and hold.state is HoldState.SETTLED:
                return Reservation(
                    outcome=ReserveOutcome.ALREADY_SETTLED,
                    admission=hold.admission,
                    left_microcredits=available,
                )
            if hold is not None and hold.state is HoldState.HELD:
                return self._answer_held(request, hold, account, now_ms)
            if hold is not None and hold.final:
                return denied(DenialReason.REVOKED, available)
            return self._admit(request, hold, account, now_ms)

    def settle(
        self,
        customer: str,
        task_id: str,
        events: Sequence[UsageEvent],
        *,
        marked: bool = False,  # noqa: ARG002 - nothing is leased in memory, so nothing needs a mark
    ) -> Settlement:
        """End the hold and put the events into the outbox. See ``QuotaStore.settle``."""
        check_lines(customer, task_id, events)
        with self._lock:
            now_ms = self._now_ms()
            hold = self._find(customer, task_id, now_ms)
            if hold is not None and hold.state is HoldState.SETTLED:
                return Settlement(
                    outcome=SettleOutcome.EXISTS, lines=hold.lines, quota_epoch=hold.epoch
                )
            account = self._accounts.get(customer)
            is_open = hold is not None and hold.state is HoldState.HELD
            if hold is None or not is_open:
                hold = self._admission_of_nothing(customer, task_id, hold, account, events)
            # What was held was promised: a balance below zero does not take it back.
            room = None if account is None else hold.held + max(account.available, 0)
            if is_open:
                self._close(hold, account)
            counted_as, promised = (hold, hold.held) if is_open else (None, 0)
            hold.lines = self._charge(counted_as, account, events, room, promised)
            hold.state, hold.cause = HoldState.SETTLED, ""
            hold.epoch = account.epoch if account else 0
            self._remember(hold, now_ms)
            if account is None:
                outcome = SettleOutcome.UNCOUNTED
            else:
                outcome = SettleOutcome.SETTLED if is_open else SettleOutcome.WITHOUT_HOLD
            return Settlement(outcome=outcome, lines=hold.lines, quota_epoch=hold.epoch)

    def release(
        self, customer: str, task_id: str, cause: ReleaseCause, event: UsageEvent | None
    ) -> ReleaseOutcome:
        """Give the hold back. See ``QuotaStore.release``."""
        if event is not None:
            check_event(customer, event, free=True)
        with self._lock:
            now_ms = self._now_ms()
            hold = self._find(customer, task_id, now_ms)
            if hold is not None and hold.state is HoldState.HELD:
                self._close(hold, self._accounts.get(customer))
                hold.state, hold.cause, hold.final = HoldState.RELEASED, cause.value, cause.final
                self._remember(hold, now_ms)
                if event is not None:
                    self._put_out(customer, event)
                return ReleaseOutcome.RELEASED
            if hold is not None and hold.admission:
                told_before = hold.cause == cause.value
                if hold.state is HoldState.SETTLED or not cause.final or told_before:
                    return ReleaseOutcome.ENDED_BEFORE
            if not cause.final:
                return ReleaseOutcome.NOTHING
            # No hold is open, and none may be: the mark stays beside how the last admission ended.
            hold = hold or Hold(customer, task_id, cause=cause.value)
            hold.final = True
            self._remember(hold, now_ms)
            return ReleaseOutcome.TOMBSTONE

    def append(self, customer: str, event: UsageEvent) -> None:
        """Put an event of amount 0 into the outbox. See ``QuotaStore.append``."""
        check_event(customer, event, free=True)
        with self._lock:
            self._put_out(customer, event)

    def expire(self, limit: int) -> list[HoldView]:
        """Expire up to ``limit`` holds over time, the oldest first. See ``QuotaStore.expire``."""
        with self._lock:
            now_ms = self._now_ms()
            due = [hold for hold in self._open.values() if hold.expires_at_ms <= now_ms]
            due.sort(key=lambda hold: hold.expires_at_ms)
            for hold in due[:limit]:
                self._close(hold, self._accounts.get(hold.customer))
                hold.state = HoldState.EXPIRED
                self._remember(hold, now_ms)
            return [hold.view() for hold in due[:limit]]

    def load(self, state: AccountState) -> LoadOutcome:
        """Take over what PostgreSQL knows, if it is newer. See ``QuotaStore.load``."""
        check_state(state)
        with self._lock:
            now_ms = self._now_ms()
            born_ms = self._born.setdefault(shard_of(state.customer), now_ms)
            account = self._accounts.get(state.customer)
            if account is not None and account.epoch > state.epoch:
                return LoadOutcome.STALE
            if account is not None and account.epoch == state.epoch:
                return self._sync(account, state, now_ms)
            if state.settled_microcredits == SYNC_ONLY:
                # An account of an older epoch is behind the fence: the next reserve has it rebuilt.
                self._accounts.pop(state.customer, None)
                return LoadOutcome.STALE
            if account is None and state.had_usage and now_ms < born_ms + self._quarantine_ms:
                return LoadOutcome.QUARANTINED
            return self._load_anew(state)

    def account(self, customer: str) -> AccountView | None:
        """The account, or None where the balance is unknown."""
        with self._lock:
            account = self._accounts.get(customer)
            return account.view(customer) if account else None

    def hold(self, customer: str, task_id: str) -> HoldView | None:
        """The latest admission of a task, as long as it is remembered."""
        with self._lock:
            hold = self._find(customer, task_id, self._now_ms())
            return hold.view() if hold else None

    def open_holds(self, customer: str | None = None) -> list[HoldView]:
        """Every hold in state ``held``, oldest expiry first."""
        with self._lock:
            views = [
                hold.view()
                for hold in self._open.values()
                if customer is None or hold.customer == customer
            ]
        return sorted(views, key=lambda view: (view.expires_at_ms, view.customer, view.task_id))

    def _answer_held(
        self, request: HoldRequest, hold: Hold, account: Account | None, now_ms: int
    ) -> Reservation:
        amount = request.amount_microcredits
        outcome = ReserveOutcome.EXISTS
        if (hold.held, hold.sku) != (amount, request.sku):
            if account is None:
                return Reservation(
                    outcome=ReserveOutcome.UNKNOWN_BALANCE, held_microcredits=hold.held
                )
            refusal = refusal_of_change(request, hold, account)
            if refusal:
                return denied(*refusal, held=hold.held)
            if hold.period_start_ms == account.period_start_ms:
                account.count_spent(hold.sku, -hold.held)
                account.count_spent(request.sku, amount)
            account.held += amount - hold.held
            hold.held, hold.sku = amount, request.sku
            outcome = ReserveOutcome.ADJUSTED
        hold.expires_at_ms = now_ms + request.ttl_seconds * _MILLISECONDS
        return Reservation(
            outcome=outcome,
            admission=hold.admission,
            held_microcredits=amount,
            left_microcredits=max(account.available, 0) if account else 0,
        )

    def _admit(
        self, request: HoldRequest, last: Hold | None, account: Account | None, now_ms: int
    ) -> Reservation:
        if account is None or now_ms >= account.period_end_ms:
            return Reservation(outcome=ReserveOutcome.UNKNOWN_BALANCE)
        if account.suspended:
            return denied(DenialReason.CUSTOMER_SUSPENDED, account.available)
        amount = request.amount_microcredits
        refusal = refusal_of(account, request.sku, amount, amount)
        if refusal:
            return denied(*refusal)
        hold = Hold(
            request.customer,
            request.task_id,
            state=HoldState.HELD,
            sku=request.sku,
            admission=last.admission + 1 if last else 1,
            held=amount,
            expires_at_ms=now_ms + request.ttl_seconds * _MILLISECONDS,
            period_start_ms=account.period_start_ms,
            epoch=account.epoch,
        )
        self._holds[hold.name] = self._open[hold.name] = hold
        account.held += amount
        account.count_spent(request.sku, amount)
        return Reservation(
            outcome=ReserveOutcome.HELD,
            admission=hold.admission,
            held_microcredits=amount,
            left_microcredits=account.available,
        )

    def _admission_of_nothing(
        self,
        customer: str,
        task_id: str,
        last: Hold | None,
        account: Account | None,
        events: Sequence[UsageEvent],
    ) -> Hold:
        hold = Hold(customer, task_id, admission=last.admission + 1 if last else 1)
        hold.sku = events[0].sku if events else ""
        hold.period_start_ms = account.period_start_ms if account else 0
        self._holds[hold.name] = hold
        return hold

    def _charge(
        self,
        hold: Hold | None,
        account: Account | None,
        events: Sequence[UsageEvent],
        room: int | None,
        promised: int,
    ) -> tuple[LineFigures, ...]:
        """Charge each line up to what is left of ``room`` (None: in full) and put its event out.

        What was ``promised`` was admitted under the budgets of that moment and stays so.
        """
        lines: list[LineFigures] = []
        for event in events:
            asked = event.amount_microcredits
            amount = asked if room is None else min(asked, room)
            if account is not None and room is not None:
                if counts(hold, account, event):
                    amount = min(amount, max(promised, account.left_of_budgets(event.sku)))
                    account.count_spent(event.sku, amount)
                promised = max(promised - amount, 0)
                room -= amount
                account.settled += amount
            epoch = account.epoch if account else 0
            self.outbox.append(
                event.settled(amount=amount, shortfall=asked - amount, quota_epoch=epoch)
            )
            lines.append(
                LineFigures(
                    line=event.line,
                    amount_microcredits=amount,
                    shortfall_microcredits=asked - amount,
                )
            )
        return tuple(lines)

    def _close(self, hold: Hold, account: Account | None) -> None:
        """Take a hold out of what is open and, where there is an account, out of its figures."""
        del self._open[hold.name]
        if account is None:
            return
        account.held -= hold.held
        if hold.period_start_ms == account.period_start_ms:
            account.count_spent(hold.sku, -hold.held)

    def _sync(self, account: Account, state: AccountState, now_ms: int) -> LoadOutcome:
        newer = account.is_newer(state)
        moves = account.moves(state, now_ms)
        # A month ends without anybody bumping the version.
        turns = state.version == account.version and moves and now_ms >= account.period_end_ms
        if not newer and not turns:
            return LoadOutcome.STALE
        if newer:
            account.settled += state.late_microcredits - account.late
            account.take_terms(state)
        # A state read just before the month's end must not bring the old month back.
        if moves:
            self._take_period(account, state)
        return LoadOutcome.SYNCED

    def _load_anew(self, state: AccountState) -> LoadOutcome:
        account = Account(epoch=state.epoch)
        account.settled = state.settled_microcredits + state.late_microcredits
        account.held = sum(view.held_microcredits for view in self.open_holds(state.customer))
        account.take_terms(state)
        self._take_period(account, state)
        self._accounts[state.customer] = account
        return LoadOutcome.LOADED

    def _take_period(self, account: Account, state: AccountState) -> None:
        account.period_start_ms = state.period_start_ms
        account.period_end_ms = state.period_end_ms
        account.spent = dict(state.spent)
        for hold in self._open.values():
            if (hold.customer, hold.period_start_ms) == (state.customer, state.period_start_ms):
                account.count_spent(hold.sku, hold.held)

    def _put_out(self, customer: str, event: UsageEvent) -> None:
        account = self._accounts.get(customer)
        epoch = account.epoch if account else 0
        self.outbox.append(event.settled(amount=0, shortfall=0, quota_epoch=epoch))

    def _find(self, customer: str, task_id: str, now_ms: int) -> Hold | None:
        while self._ended and (self._ended[0].forget_at_ms or 0) <= now_ms:
            self._forget(self._ended.popleft(), now_ms)
        hold = self._holds.get((customer, task_id))
        if hold is not None and hold.forget_at_ms is not None and hold.forget_at_ms <= now_ms:
            return None
        return hold

    def _forget(self, hold: Hold, now_ms: int) -> None:
        if self._holds.get(hold.name) is hold and (hold.forget_at_ms or 0) <= now_ms:
            del self._holds[hold.name]

    def _remember(self, hold: Hold, now_ms: int) -> None:
        self._holds[hold.name] = hold
        hold.forget_at_ms = now_ms + self._remember_ms
        self._ended.append(hold)

    def _now_ms(self) -> int:
        return to_ms(self._clock.now())
