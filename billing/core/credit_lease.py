"""A lease: credits that one process holds in one piece and admits tasks from by itself. Pure.

In the store a lease is a hold like any other, counted as held under the lease's own id: a rebuild,
a sweep and the books know nothing else of it. What is special is that it is settled in parts, and
that its holder may ask for it to become larger or smaller.

In its process a lease is four amounts::

    free --admit--> out --end--> pending --settled--> (settled in the store)
      ^              |
      '---- rest ----'

``free + out + pending`` is never more than what the store holds for it, so whatever is admitted
is covered. That is kept by one rule: a request tells how much has to stay (``out + pending``) and
gives up what was free; only the answer makes something free again. An answer that is lost makes
nothing free, and a request that arrives late, after a later one, changes nothing (its number is
lower).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from billing.core.credits import MAX_MICROCREDITS
from billing.core.errors import InvalidValue
from billing.core.reservation import LineFigures
from billing.core.usage_event import UsageEvent

LEASE_PREFIX: Final = "lease:"
"""Begins the id of every lease, under which it is a hold among those of tasks."""

SHARE: Final = 8
"""All of a customer's leases together get about an eighth of what is available at a time.

What balance and budgets leave is divided by this times the customer's leases; where the share is
less than one task the customer's tasks are admitted one by one. What leases strand is so bounded by
what was there."""

FIRST_TASKS: Final = 32
"""How many tasks' worth a process asks for before it knows how many it will run."""

ENDED_SECONDS: Final = 300
"""How long the store remembers a lease that was given back: longer than a request can be on its
way, so that one that was overtaken does not open it again."""


class LeaseOutcome(StrEnum):
    """What a request for a lease found or did."""

    GRANTED = "granted"
    """The lease holds what had to stay and what was granted."""
    SCARCE = "scarce"
    """Too little is left, or the customer is suspended: nothing was granted; ask task by task."""
    UNKNOWN_BALANCE = "unknown_balance"
    """There is no account here, or its month is over; nothing was granted."""
    ENDED = "ended"
    """There is no such lease any more, or it is of last month: nothing will be granted to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRequest:
    """One request: what the lease is to be. A repeat, or one that was overtaken, changes nothing.

    ``number`` counts the requests of a lease from 1. ``keep_microcredits`` has to stay;
    ``wish_microcredits`` is asked for beside it, and less than ``least_microcredits`` is no use.
    A wish of zero gives back what is not kept, and ends the lease where nothing is.
    """

    customer: str
    sku: str
    lease_id: str
    number: int
    keep_microcredits: int
    wish_microcredits: int
    least_microcredits: int
    ttl_seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseGrant:
    """The answer to a ``LeaseRequest``: what may be admitted from it beside what was kept."""

    outcome: LeaseOutcome
    granted_microcredits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedRun:
    """A run under a lease, to be settled.

    ``promised_microcredits`` of the lease are for it. ``events`` each have the amount they should
    cost; the first one's id says whether the task was settled before.
    """

    promised_microcredits: int
    events: tuple[UsageEvent, ...]
    wires: tuple[bytes, ...] = ()
    """The events as they are on the wire, where somebody has encoded them already."""

    @property
    def encoded(self) -> tuple[bytes, ...]:
        """The events as they are on the wire."""
        return self.wires or tuple(event.to_wire() for event in self.events)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedBatch:
    """Runs of one lease, settled in one step."""

    customer: str
    lease_id: str
    runs: tuple[LeasedRun, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """What became of a run: a ``repeat`` was settled before; nothing was charged or put out."""

    repeat: bool
    lines: tuple[LineFigures, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettlement:
    """The answer to a ``LeasedBatch``; ``runs`` in its order."""

    runs: tuple[RunFigures, ...]
    quota_epoch: int


def wish_of(used: int, task: int) -> int:
    """What to ask for: twice what was used since the last grant, or some tasks' worth."""
    # At least one: to wish for nothing is to give back, also where a task costs nothing.
    return min(max(2 * used, FIRST_TASKS * task, 1), MAX_MICROCREDITS)


@dataclass(slots=True, eq=False)
class Lease:
    """A lease as its process has it. Not locked: the caller sees to that.

    Attributes:
        admits_until: By the process's own clock, in seconds; nothing is admitted from then on.
        used: What was admitted since the last grant.
        ended: Nothing will be granted to it any more; it lives until what is out is settled.
    """

    customer: str
    sku: str
    lease_id: str
    admits_until: float = 0.0
    free: int = 0
    out: int = 0
    pending: int = 0
    used: int = 0
    number: int = 0
    ended: bool = field(default=False)

    @property
    def kept(self) -> int:
        """Credits that must stay in the store."""
        return self.out + self.pending

    def admit(self, amount: int, now: float) -> bool:
        """Take what one run may cost, if it is there and it is not too late."""
        if amount > self.free or now >= self.admits_until:
            return False
        self.free -= amount
        self.out += amount
        self.used += amount
        return True

    def end(self, held: int, asked: int) -> int:
        """End a run that held so much and should cost so much; returns what it is promised.

        What it did not need is free again; what it needs beyond, it gets from what is free.
        """
        promised = min(asked, held + self.free)
        self.out -= held
        self.free += held - promised
        self.pending += promised
        return promised

    def settled(self, promised: int) -> None:
        """Note that the store has settled a run that was promised so much."""
        self.pending -= promised

    def request(self, wish: int, least: int, ttl_seconds: int) -> LeaseRequest:
        """Ask for so much beside what must stay. Until the answer comes nothing is free."""
        self.number += 1
        self.free = 0
        return LeaseRequest(
            customer=self.customer,
            sku=self.sku,
            lease_id=self.lease_id,
            number=self.number,
            keep_microcredits=self.kept,
            wish_microcredits=wish,
            least_microcredits=least,
            ttl_seconds=ttl_seconds,
        )

    def granted(self, grant: LeaseGrant, admits_until: float) -> None:
        """Take the answer to the last request, beside what ended runs have freed meanwhile."""
        self.used = 0
        if grant.outcome is LeaseOutcome.GRANTED:
            self.free += grant.granted_microcredits
            self.admits_until = admits_until
        else:
            self.admits_until = 0.0
        if grant.outcome is LeaseOutcome.ENDED:
            self.ended = True


@dataclass(slots=True, eq=False)
class LeasedAdmission:
    """One run that was admitted from a lease.

    ``run`` is what it is to be settled for, once that is known, and ``line`` and ``segment`` its
    entry on the disk. ``dropped`` gets lease and amount if nobody ends it.
    """

    lease: Lease
    held: int
    dropped: deque[tuple[Lease, int]]
    ended: bool = False
    run: LeasedRun | None = None
    line: bytes = b""
    segment: object = None
    settled: bool = False

    def __del__(self) -> None:
        # Wherever the garbage collector runs: no lock may be taken here.
        if not self.ended:
            self.dropped.append((self.lease, self.held))


def check_lease(request: LeaseRequest) -> None:
    """Refuse a request that cannot be right.

    Raises:
        InvalidValue: Names the field.
    """
    if not request.lease_id.startswith(LEASE_PREFIX):
        raise InvalidValue("lease_id", request.lease_id, f"begin it with {LEASE_PREFIX!r}")
    for name in ("number", "ttl_seconds"):
        if getattr(request, name) <= 0:
            raise InvalidValue(name, getattr(request, name), "use one or more")
    for name in ("keep_microcredits", "wish_microcredits", "least_microcredits"):
        value = getattr(request, name)
        if not 0 <= value <= MAX_MICROCREDITS:
            raise InvalidValue(name, value, "use 0 to 2^53")
