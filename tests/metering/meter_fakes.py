"""A meter with everything around it in memory, and servers that fail when they are told to."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

from support import LONG_AGO, NOW

from billing.core.admission import TaskFacts
from billing.core.clock import ManualClock, to_ms
from billing.core.errors import NotFound, PublishFailed, QuotaUnavailable
from billing.core.reservation import (
    SYNC_ONLY,
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
from billing.core.sku import (
    DenialPolicy,
    FailurePolicy,
    Price,
    Pricing,
    Sku,
    UnavailablePolicy,
)
from billing.core.usage_event import UsageEvent
from billing.core.usage_event_json import from_wire
from billing.metering.meter import Meter
from billing.quota.memory_store import MemoryQuotaStore
from billing.transport.settled_figures import Encodable

T = TypeVar("T")

CREDIT = 1_000_000
HOLD_TTL_SECONDS = 60


def make_sku(name: str = "page-capture", *, price: int = CREDIT, **overrides: object) -> Sku:
    """A fixed SKU of one credit that releases on failure, unless told otherwise."""
    fields: dict[str, Any] = {
        "unit": "page",
        "pricing": Pricing.FIXED,
        "hold_quantity": 1,
        "failure_policy": FailurePolicy.RELEASE,
        "denial_policy": DenialPolicy.FAIL,
        "unavailable_policy": UnavailablePolicy.RETRY,
        "allow_limit": 0,
        "prices": (Price(price, LONG_AGO),),
    } | overrides
    return Sku(id=name, **fields)


def make_measured(
    name: str = "crawl", *, price: int = CREDIT, hold: int = 5, **more: object
) -> Sku:
    """A measured SKU that holds ``hold`` units."""
    return make_sku(name, price=price, pricing=Pricing.MEASURED, hold_quantity=hold, **more)


def make_facts(task_id: str = "task-1", **overrides: object) -> TaskFacts:
    """A task of ``acme``, metered at the instant of the tests' clock."""
    fields: dict[str, Any] = {"customer": "acme", "metered_at": NOW, "task_name": "tests.capture"}
    return TaskFacts(task_id=task_id, **(fields | overrides))


class Died(BaseException):
    """The process was killed here."""


class Faults:
    """Which calls fail: the next ones of a verb, before they do anything or after they did it."""

    def __init__(self) -> None:
        self.down = False
        self._planned: defaultdict[str, list[str]] = defaultdict(list)
        self.calls: Counter[str] = Counter()

    def plan(self, verb: str, *when: str) -> None:
        """The next calls of ``verb`` fail ``before`` or ``after`` their work, or go ``well``.

        At ``die before`` and ``die after`` the whole process ends there.
        """
        self._planned[verb] += when

    def forget(self) -> None:
        """What was planned and did not happen will not happen."""
        self._planned.clear()

    def call(self, verb: str, error: Callable[[], Exception], work: Callable[[], T]) -> T:
        self.calls[verb] += 1
        planned = self._planned[verb].pop(0) if self._planned[verb] else "well"
        if planned == "die before":
            raise Died
        if self.down or planned == "before":
            raise error()
        answer = work()
        if planned == "die after":
            raise Died
        if planned == "after":
            raise error()
        return answer


class FlakyQuota:
    """``MemoryQuotaStore`` behind a network that times out when told to."""

    def __init__(self, inner: MemoryQuotaStore) -> None:
        self.inner = inner
        self.faults = Faults()

    def _call(self, verb: str, work: Callable[[], T]) -> T:
        return self.faults.call(verb, lambda: QuotaUnavailable("no answer in 250 ms"), work)

    def reserve(self, request: HoldRequest) -> Reservation:
        return self._call("reserve", lambda: self.inner.reserve(request))

    def settle(
        self, customer: str, task_id: str, events: Sequence[UsageEvent], *, marked: bool = False
    ) -> Settlement:
        return self._call(
            "settle", lambda: self.inner.settle(customer, task_id, events, marked=marked)
        )

    def release(
        self, customer: str, task_id: str, cause: ReleaseCause, event: UsageEvent | None
    ) -> ReleaseOutcome:
        return self._call("release", lambda: self.inner.release(customer, task_id, cause, event))

    def append(self, customer: str, event: UsageEvent) -> None:
        self._call("append", lambda: self.inner.append(customer, event))

    def expire(self, limit: int) -> list[HoldView]:
        return self._call("expire", lambda: self.inner.expire(limit))

    def load(self, state: AccountState) -> LoadOutcome:
        return self._call("load", lambda: self.inner.load(state))

    def account(self, customer: str) -> AccountView | None:
        return self._call("account", lambda: self.inner.account(customer))

    def hold(self, customer: str, task_id: str) -> HoldView | None:
        return self._call("hold", lambda: self.inner.hold(customer, task_id))

    def open_holds(self, customer: str | None = None) -> list[HoldView]:
        return self._call("open_holds", lambda: self.inner.open_holds(customer))


class ListPublisher:
    """The broker: confirms what it is given, unless it is away."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.events: list[UsageEvent] = []

    def publish(self, events: Sequence[UsageEvent]) -> None:
        self.faults.call("publish", PublishFailed, lambda: self.events.extend(events))


def plain(event: Encodable) -> UsageEvent:
    """The event itself, of what may be its bytes."""
    return event if isinstance(event, UsageEvent) else from_wire(event.to_wire())


class ListShelf:
    """A journal or spool in memory, on a disk that can be full."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.events: list[UsageEvent] = []

    def append(self, events: Sequence[UsageEvent]) -> None:
        full = OSError(28, "No space left on device")
        self.faults.call("append", lambda: full, lambda: self.events.extend(map(plain, events)))


@dataclass
class Books:
    """What PostgreSQL would know of the customers, loaded into the quota store when asked."""

    quota: MemoryQuotaStore
    granted: dict[str, int] = field(default_factory=dict)
    suspended: set[str] = field(default_factory=set)
    budgets: dict[str, dict[str, int]] = field(default_factory=dict)
    had_usage: bool = False
    faults: Faults = field(default_factory=Faults)
    epochs: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)

    def refresh(self, customer: str) -> LoadOutcome:
        return self.faults.call("refresh", QuotaUnavailable, lambda: self._load(customer))

    def grant(self, customer: str, amount: int) -> None:
        """Give credits, and tell the quota store within the epoch it has."""
        self.granted[customer] += amount
        self.versions[customer] += 1
        self.quota.load(replace(self._state(customer), settled_microcredits=SYNC_ONLY))

    def _load(self, customer: str) -> LoadOutcome:
        if customer not in self.granted:
            raise NotFound("customer", customer, "add it")
        self.epochs[customer] += 1
        self.versions[customer] += 1
        return self.quota.load(self._state(customer))

    def _state(self, customer: str) -> AccountState:
        return AccountState(
            customer=customer,
            epoch=self.epochs[customer],
            version=self.versions[customer],
            suspended=customer in self.suspended,
            granted_microcredits=self.granted[customer],
            settled_microcredits=0,
            late_microcredits=0,
            period_start_ms=to_ms(NOW - timedelta(days=9)),
            period_end_ms=to_ms(NOW + timedelta(days=15)),
            budgets=self.budgets.get(customer, {}),
            had_usage=self.had_usage,
        )


class World:
    """A meter, its servers, and one customer ``acme`` with ten credits."""

    memory_type = MemoryQuotaStore

    def __init__(self, *skus: Sku, credits: int = 10, quarantine_seconds: int = 0) -> None:  # noqa: A002 - the word of the field
        self.clock = ManualClock(NOW)
        self.skus = {sku.id: sku for sku in skus or (make_sku(),)}
        self.memory = self.memory_type(self.clock, quarantine_seconds=quarantine_seconds)
        self.quota = FlakyQuota(self.memory)
        self.books = Books(self.memory, granted={"acme": credits * CREDIT})
        self.publisher = ListPublisher()
        self.journal = ListShelf()
        self.spool = ListShelf()
        self.meter = self.another_process()

    def another_process(self) -> Meter:
        """A meter on the same servers, with nothing in its memory."""
        return Meter(
            quota=self.quota,
            skus=self.sku,
            refresh=self.books.refresh,
            publisher=self.publisher,
            journal=self.journal,
            spool=self.spool,
            clock=self.clock,
            hold_ttl_seconds=HOLD_TTL_SECONDS,
            currency="USD",
        )

    def sku(self, name: str) -> Sku:
        try:
            return self.skus[name]
        except KeyError:
            raise NotFound("sku", name, "add it") from None

    @property
    def outbox(self) -> list[UsageEvent]:
        return self.memory.outbox

    @property
    def account(self) -> AccountView:
        account = self.memory.account("acme")
        assert account is not None
        return account

    def figures(self) -> tuple[int, int, int]:
        """What ``acme`` has available, held and settled, in credits."""
        account = self.account
        parts = (
            account.available_microcredits,
            account.held_microcredits,
            account.settled_microcredits,
        )
        assert all(part % CREDIT == 0 for part in parts)
        return tuple(part // CREDIT for part in parts)  # type: ignore[return-value]  # three of them
