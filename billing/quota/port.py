"""The ports of the quota store: what admits and settles, whatever it runs on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from billing.core.credit_lease import BatchSettlement, LeasedBatch, LeaseGrant, LeaseRequest
from billing.core.errors import WeighbridgeError
from billing.core.reservation import (
    AccountState,
    AccountView,
    HoldRequest,
    HoldView,
    LoadOutcome,
    ReleaseCause,
    ReleaseOutcome,
    Reservation,
    Settlement,
)
from billing.core.usage_event import UsageEvent


class QuotaStore(Protocol):
    """The quota store. Every verb is one atomic step; a repeat of any of them changes nothing.

    Implemented by ``RedisQuotaStore`` and ``MemoryQuotaStore``, which pass the same
    contract suite. All raise ``QuotaUnavailable`` when the store does not answer within its
    time-out; the step may then have happened or not, and repeating it is safe.
    """

    def reserve(self, request: HoldRequest) -> Reservation:
        """Hold the amount for the task, or say why not."""
        ...

    def settle(
        self,
        customer: str,
        task_id: str,
        events: Sequence[UsageEvent],
        *,
        marked: bool = False,
    ) -> Settlement:
        """End the hold and put the events into the outbox, in one step.

        Args:
            customer: Whose account.
            task_id: Whose hold.
            events: One per line, each with the amount it should cost in ``amount_microcredits``.
                The store decides what is charged: up to the hold plus what is available; the rest
                of a line becomes its shortfall. The outbox gets the events with the decided
                figures.
            marked: Leases settle tasks of this SKU too: if one has settled this task, it
                ``EXISTS``, without figures; else the task is marked by its first event's id.
        """
        ...

    def release(
        self, customer: str, task_id: str, cause: ReleaseCause, event: UsageEvent | None
    ) -> ReleaseOutcome:
        """Give the hold back; with ``RELEASED``, ``event`` (amount 0) goes into the outbox."""
        ...

    def append(self, customer: str, event: UsageEvent) -> None:
        """Put an event of amount 0 (a denial) into the outbox."""
        ...

    def expire(self, limit: int) -> list[HoldView]:
        """Expire up to ``limit`` holds that are over time; their credits are available again."""
        ...

    def load(self, state: AccountState) -> LoadOutcome:
        """Take over what PostgreSQL knows, if it is newer than what is here; open holds stay."""
        ...

    def account(self, customer: str) -> AccountView | None:
        """The account, or None where the balance is unknown."""
        ...

    def hold(self, customer: str, task_id: str) -> HoldView | None:
        """The latest admission of a task, as long as it is remembered."""
        ...

    def open_holds(self, customer: str | None = None) -> list[HoldView]:
        """Every hold in state ``held``, oldest expiry first."""
        ...


class LeaseStore(Protocol):
    """What a quota store can do with leases; beside ``hold.QuotaStore``, which knows them as holds.

    All raise ``QuotaUnavailable`` when the store does not answer in time; the step may then have
    happened or not, and repeating it is safe.
    """

    def lease(self, request: LeaseRequest) -> LeaseGrant:
        """Make the lease what is requested, as far as balance and budgets bear it. One step."""
        ...

    def settle_leased(
        self, batches: Sequence[LeasedBatch]
    ) -> list[BatchSettlement | WeighbridgeError]:
        """Charge the runs and put their events into the outbox; each batch is one step.

        A run is charged what it was promised, and beyond that as far as balance and budgets bear
        it; where the lease has ended, that is all of it. One that was settled before is left out.

        Returns:
            In the order of the batches; an error in the place of one that was refused.
        """
        ...

    def release(
        self, customer: str, task_id: str, cause: ReleaseCause, event: UsageEvent | None
    ) -> ReleaseOutcome:
        """End a lease as any hold; see ``hold.QuotaStore.release``."""
        ...
