"""The life of a hold, pure: its states, and the answers of each verb.

::

    (none) --reserve--> held --settle--> settled
                          |---release--> released --reserve--> held (another admission)
                          '---expire---> expired  --reserve--> held (another admission)

One *admission* is one way from ``held`` to an end; there is no other edge. A task that comes back
after its hold was released or had expired is admitted anew under the next admission number. A
settle that finds no open hold is an admission of nothing that settles at once: usage is never
dropped.

The account of a customer keeps three integers, ``granted``, ``held`` and ``settled``; what is
available is computed, never stored, so it cannot disagree with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final
from uuid import UUID

from billing.core.errors import DenialReason

ALL_SKUS: Final = "*"
"""The name under which a budget counts every SKU."""

SYNC_ONLY: Final = -1
"""As ``AccountState.settled_microcredits``: the log's total at the rebuild of this epoch is
unknown, so an account of the same epoch can be brought up to date and none can be loaded anew."""

TIME_LIMIT_MARGIN_SECONDS: Final = 30
"""A hold outlives its task's hard time limit by at least this. Celery declares a child lost 10 s
after it died (billiard's LOST_WORKER_TIMEOUT), and clocks differ by a few seconds."""

LOST_WORKER_SECONDS: Final = 10
assert TIME_LIMIT_MARGIN_SECONDS > LOST_WORKER_SECONDS  # noqa: S101 - a relation between constants


class HoldState(StrEnum):
    """Where a hold is in its life."""

    HELD = "held"
    SETTLED = "settled"
    RELEASED = "released"
    EXPIRED = "expired"


class ReleaseCause(StrEnum):
    """Why an admitted run ended without a settlement. ``final`` ones forbid another admission."""

    EXCEPTION = "exception"
    SOFT_TIME_LIMIT = "soft_time_limit"
    HARD_TIME_LIMIT = "hard_time_limit"
    WORKER_LOST = "worker_lost"
    EXITED = "exited"
    IGNORED = "ignored"
    REJECTED = "rejected"
    REVOKED = "revoked"

    @property
    def final(self) -> bool:
        """True where the task must not be admitted again, even if its release came first."""
        return self is ReleaseCause.REVOKED


class ReserveOutcome(StrEnum):
    """What a reserve found or did. ``admitted`` ones let the body run."""

    HELD = "held"
    """A new admission; the amount is held."""
    EXISTS = "exists"
    """The same task holds the same amount already; nothing changed."""
    ADJUSTED = "adjusted"
    """The same task held another amount; now it holds this one, in the same admission."""
    ALREADY_SETTLED = "already_settled"
    """The task was billed before; its body may run again and costs nothing more."""
    DENIED = "denied"
    UNKNOWN_BALANCE = "unknown_balance"
    """There is no account here, or its month is over: load it from PostgreSQL, then ask again."""

    @property
    def admitted(self) -> bool:
        """Whether the body may run."""
        return self not in {ReserveOutcome.DENIED, ReserveOutcome.UNKNOWN_BALANCE}


class SettleOutcome(StrEnum):
    """What a settle found or did."""

    SETTLED = "settled"
    """The open hold was settled."""
    EXISTS = "exists"
    """It was settled before; the first one's figures are returned and are the truth."""
    WITHOUT_HOLD = "without_hold"
    """No open hold (released, expired, lost, or never taken): charged from what is available."""
    UNCOUNTED = "uncounted"
    """No account either: charged in full under epoch 0; the log will tell the balance later."""
    LEASED = "leased"
    """Admitted from a lease: on this node's disk. The store settles it soon, and decides
    the figures: here there are no lines yet."""


class ReleaseOutcome(StrEnum):
    """What a release found or did."""

    RELEASED = "released"
    ENDED_BEFORE = "ended_before"
    """The hold had ended already; nothing changed and no event was written."""
    TOMBSTONE = "tombstone"
    """There was no hold yet; a later reserve of this task will be denied as revoked."""
    NOTHING = "nothing"
    """There was no hold and the cause is not final: nothing to do, no event was written."""


class LoadOutcome(StrEnum):
    """What became of an account state from PostgreSQL."""

    LOADED = "loaded"
    SYNCED = "synced"
    STALE = "stale"
    """The store has this version or a newer one already; nothing changed."""
    QUARANTINED = "quarantined"
    """The store lost its data moments ago and events may be on their way to the log; ask again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldRequest:
    """One admission asked for.

    ``mark`` is the id of the task's usage line where leases settle tasks of this SKU too, so that
    one which a lease has settled is known as a repeat.
    """

    task_id: str
    customer: str
    sku: str
    amount_microcredits: int
    ttl_seconds: int
    mark: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """The answer to a ``HoldRequest``.

    ``admission`` counts the admissions of this task from 1 (0 when denied or unknown);
    ``held_microcredits`` is what is held now; ``left_microcredits`` is what is left of whatever the
    ``reason`` names (the balance, or the budget), or else the available balance.
    """

    outcome: ReserveOutcome
    reason: DenialReason | None = None
    admission: int = 0
    held_microcredits: int = 0
    left_microcredits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LineFigures:
    """What was charged for one line of a task."""

    line: str
    amount_microcredits: int
    shortfall_microcredits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """The answer to a settle. ``lines`` in the order they were first settled in.

    ``wires`` are the events as the store was given them, encoded; empty where it encodes none.
    """

    outcome: SettleOutcome
    lines: tuple[LineFigures, ...]
    quota_epoch: int
    wires: tuple[bytes, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountState:
    """A customer's account as PostgreSQL knows it.

    ``epoch`` grows with each rebuild and ``version`` with each change of its terms.
    ``settled_microcredits`` is the log's total at the rebuild of this epoch;
    ``late_microcredits`` is what the log has got since from events that this epoch had not counted.
    ``budgets`` and ``spent`` are microcredits by SKU, ``ALL_SKUS`` for the budget over all.
    """

    customer: str
    epoch: int
    version: int
    suspended: bool
    granted_microcredits: int
    settled_microcredits: int
    late_microcredits: int
    period_start_ms: int
    period_end_ms: int
    budgets: Mapping[str, int] = field(default_factory=dict)
    spent: Mapping[str, int] = field(default_factory=dict)
    had_usage: bool = False
    """Whether the log has any event of this customer: if not, none can be on its way unseen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountView:
    """A customer's account as the quota store has it."""

    customer: str
    epoch: int
    version: int
    suspended: bool
    granted_microcredits: int
    held_microcredits: int
    settled_microcredits: int
    late_microcredits: int
    period_start_ms: int
    period_end_ms: int
    budgets: Mapping[str, int]
    spent: Mapping[str, int]
    leases: int = 0
    """Of the open holds, those that are leases."""

    @property
    def available_microcredits(self) -> int:
        """What a new hold can take; below zero only after late usage of a lost balance."""
        return self.granted_microcredits - self.settled_microcredits - self.held_microcredits


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldView:
    """A hold as the quota store has it."""

    task_id: str
    customer: str
    sku: str
    state: HoldState
    admission: int
    held_microcredits: int
    settled_microcredits: int
    cause: str
    expires_at_ms: int
