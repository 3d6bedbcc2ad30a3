"""The records of the quota store in memory, and the rules that look at one account alone. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from billing.core.clock import to_ms
from billing.core.credits import MAX_MICROCREDITS
from billing.core.errors import DenialReason
from billing.core.reservation import (
    ALL_SKUS,
    AccountState,
    AccountView,
    HoldRequest,
    HoldState,
    HoldView,
    LineFigures,
    Reservation,
    ReserveOutcome,
)
from billing.core.usage_event import UsageEvent

Refusal = tuple[DenialReason, int]
"""Why an account cannot bear an amount, and what is left of what it lacks."""
Name = tuple[str, str]
"""A hold's name: customer and task id."""


@dataclass(slots=True)
class Account:
    """A customer's account; amounts in microcredits, by SKU where they are mappings."""

    epoch: int
    version: int = 0
    suspended: bool = False
    granted: int = 0
    held: int = 0
    settled: int = 0
    late: int = 0
    period_start_ms: int = 0
    period_end_ms: int = 0
    budgets: dict[str, int] = field(default_factory=dict)
    spent: dict[str, int] = field(default_factory=dict)

    @property
    def available(self) -> int:
        """What a new hold can take; below zero only after late usage of a lost balance."""
        return self.granted - self.settled - self.held

    def view(self, customer: str) -> AccountView:
        """The account as a view; what is spent without the zeros."""
        return AccountView(
            customer=customer,
            epoch=self.epoch,
            version=self.version,
            suspended=self.suspended,
            granted_microcredits=self.granted,
            held_microcredits=self.held,
            settled_microcredits=self.settled,
            late_microcredits=self.late,
            period_start_ms=self.period_start_ms,
            period_end_ms=self.period_end_ms,
            budgets=dict(self.budgets),
            spent={sku: amount for sku, amount in self.spent.items() if amount},
        )

    def count_spent(self, sku: str, amount: int) -> None:
        """Count an amount (negative: take it out) into what is spent in the period."""
        for name in (sku, ALL_SKUS):
            self.spent[name] = self.spent.get(name, 0) + amount

    def left_of(self, name: str) -> int | None:
        """What is left of a budget; None where there is none."""
        limit = self.budgets.get(name)
        return None if limit is None else limit - self.spent.get(name, 0)

    def left_of_budgets(self, sku: str) -> int:
        """What the budgets leave for a line of a SKU, never below zero; endless without any."""
        lefts = [left for left in map(self.left_of, (sku, ALL_SKUS)) if left is not None]
        return max(min(lefts, default=MAX_MICROCREDITS), 0)

    def take_terms(self, state: AccountState) -> None:
        """Take over the terms of a newer version."""
        self.version = state.version
        self.suspended = state.suspended
        self.granted = state.granted_microcredits
        self.late = state.late_microcredits
        self.budgets = dict(state.budgets)

    def is_newer(self, state: AccountState) -> bool:
        """Whether the state tells a later version."""
        return state.version > self.version

    def moves(self, state: AccountState, now_ms: int) -> bool:
        """Whether the state tells another period, and one that is not over."""
        mine = (self.period_start_ms, self.period_end_ms)
        return mine != (state.period_start_ms, state.period_end_ms) and now_ms < state.period_end_ms


@dataclass(slots=True)
class Hold:
    """The latest admission of a task, or the mark that there must not be one (admission 0)."""

    customer: str
    task_id: str
    state: HoldState = HoldState.RELEASED
    sku: str = ""
    admission: int = 0
    held: int = 0
    cause: str = ""
    expires_at_ms: int = 0
    period_start_ms: int = 0
    epoch: int = 0
    final: bool = False
    lines: tuple[LineFigures, ...] = ()
    forget_at_ms: int | None = None

    @property
    def name(self) -> Name:
        """Customer and task id."""
        return self.customer, self.task_id

    def view(self) -> HoldView:
        """The hold as a view."""
        return HoldView(
            task_id=self.task_id,
            customer=self.customer,
            sku=self.sku,
            state=self.state,
            admission=self.admission,
            held_microcredits=self.held,
            settled_microcredits=sum(line.amount_microcredits for line in self.lines),
            cause=self.cause,
            expires_at_ms=self.expires_at_ms,
        )


def refusal_of(
    account: Account,
    sku: str,
    extra: int | None,
    extra_of_sku: int | None,
    *,
    counted: bool = True,
) -> Refusal | None:
    """Why the account cannot bear this much more (None: not asked), and what is left."""
    if extra is not None and account.available < extra:
        return DenialReason.INSUFFICIENT_CREDITS, account.available
    if not counted:
        return None
    left = account.left_of(ALL_SKUS)
    if extra is not None and left is not None and left < extra:
        return DenialReason.BUDGET_EXCEEDED, left
    left = account.left_of(sku)
    if extra_of_sku is not None and left is not None and left < extra_of_sku:
        return DenialReason.SKU_BUDGET_EXCEEDED, left
    return None


def refusal_of_change(request: HoldRequest, hold: Hold, account: Account) -> Refusal | None:
    """Why an open hold cannot become what is requested, and what is left; None where it can."""
    extra = request.amount_microcredits - hold.held
    # What shrinks always fits; a hold that moves to another SKU must fit that SKU's budget.
    asked = extra if extra > 0 else None
    asked_of_sku = asked if hold.sku == request.sku else request.amount_microcredits
    counted = hold.period_start_ms == account.period_start_ms
    return refusal_of(account, request.sku, asked, asked_of_sku, counted=counted)


def counts(hold: Hold | None, account: Account, event: UsageEvent) -> bool:
    """Whether a line counts into the account's period: as its hold did, or by its own instant."""
    if hold is not None:
        return hold.period_start_ms == account.period_start_ms
    return account.period_start_ms <= to_ms(event.metered_at) < account.period_end_ms


def denied(reason: DenialReason, left: int, *, held: int = 0) -> Reservation:
    """The answer to a request that was refused."""
    return Reservation(
        outcome=ReserveOutcome.DENIED,
        reason=reason,
        held_microcredits=held,
        left_microcredits=max(left, 0),
    )
