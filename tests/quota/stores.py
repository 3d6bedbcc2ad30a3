"""The quota stores under one set of handles, so that one suite can hold both to the contract.

Time passes in memory by the clock, and in Redis by moving every stored instant back, which to the
scripts, who see the difference only, is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import compress
from typing import Any, Protocol

import redis
from memory_leases import MemoryLeaseStore

from billing.core.clock import ManualClock, from_ms, to_ms
from billing.core.credit_lease import BatchSettlement, LeasedBatch
from billing.core.event_ids import event_id
from billing.core.reservation import (
    AccountState,
    AccountView,
    HoldRequest,
    Reservation,
    Settlement,
)
from billing.core.usage_event import Outcome, UsageEvent, denied_line, failed_line
from billing.core.usage_event_json import from_wire
from billing.metering.settlement_amounts import decided_or_asked
from billing.quota.memory_store import MemoryQuotaStore
from billing.quota.port import LeaseStore, QuotaStore
from billing.quota.redis_store import RedisQuotaStore
from billing.redis.keys import SHARDS, RedisKeys, shard_of

CUSTOMER = "acme"
SKU = "page-capture"
OTHER_SKU = "forensic-search"
RECORD_TTL_SECONDS = 1_000
HOLD_TTL_SECONDS = 100
DAY_MS = 86_400_000


class HoldsAndLeases(QuotaStore, LeaseStore, Protocol):
    """A quota store of holds and leases."""


class Store(Protocol):
    """A quota store and what a test may do to it from outside."""

    quota: HoldsAndLeases

    def now_ms(self) -> int: ...

    def pass_time(self, seconds: float) -> None: ...

    def outbox(self) -> list[UsageEvent]: ...

    def lose_everything(self) -> None: ...

    def forget_account(self, customer: str) -> None: ...

    def raw(self) -> object:
        """Everything stored, to show that nothing changed."""
        ...


StoreMaker = Callable[..., Store]
"""Makes a store; takes ``quarantine_seconds``."""


class MemoryStore:
    made_of: type[MemoryQuotaStore] = MemoryQuotaStore

    def __init__(self, *, quarantine_seconds: int = 0) -> None:
        self._clock = ManualClock(datetime.now(UTC))
        self._quarantine_seconds = quarantine_seconds
        self.lose_everything()

    def now_ms(self) -> int:
        return to_ms(self._clock.now())

    def pass_time(self, seconds: float) -> None:
        self._clock.advance(timedelta(seconds=seconds))

    def outbox(self) -> list[UsageEvent]:
        return list(self._memory.outbox)

    def lose_everything(self) -> None:
        self._memory = self.made_of(
            self._clock,
            hold_record_ttl_seconds=RECORD_TTL_SECONDS,
            quarantine_seconds=self._quarantine_seconds,
        )
        self.quota: Any = self._memory

    def forget_account(self, customer: str) -> None:
        self._memory._accounts.pop(customer, None)

    def raw(self) -> object:
        memory = self._memory
        return repr((memory._accounts, memory._holds, memory._open, memory.outbox))


class MemoryLeases(MemoryStore):
    made_of = MemoryLeaseStore


class RedisStore:
    def __init__(self, client: redis.Redis, prefix: str, *, quarantine_seconds: int = 0) -> None:
        self.client = client
        self.prefix = prefix
        self.keys = RedisKeys(prefix)
        self.quota: Any = RedisQuotaStore(
            client,
            prefix=prefix,
            hold_record_ttl_seconds=RECORD_TTL_SECONDS,
            quarantine_seconds=quarantine_seconds,
        )

    def now_ms(self) -> int:
        seconds, microseconds = self.client.time()
        return seconds * 1000 + microseconds // 1000

    def pass_time(self, seconds: float) -> None:
        by_ms = int(seconds * 1000)
        for key in self._all_keys():
            kind = key.split(":")[2]
            if kind == "open":
                for member in self.client.zrange(key, 0, -1):
                    self.client.zincrby(key, -by_ms, member)
            elif kind == "born":
                self.client.decrby(key, by_ms)
            elif kind == "acct":
                self.client.hincrby(key, "period_end_ms", -by_ms)
            elif kind == "hold":
                self._age_hold(key, by_ms)
            elif kind == "done":
                self.client.pexpire(key, self.client.pttl(key) - by_ms)

    def outbox(self) -> list[UsageEvent]:
        entries = [entry for key in self.keys.outbox_keys() for _, entry in self.client.xrange(key)]
        return [decided(entry) for entry in entries]

    def lose_everything(self) -> None:
        for key in self._all_keys():
            self.client.delete(key)

    def forget_account(self, customer: str) -> None:
        self.client.delete(self.keys.account(customer))

    def raw(self) -> object:
        return {key: self.client.dump(key) for key in sorted(self._all_keys())}

    def _all_keys(self) -> list[str]:
        return [key.decode() for key in self.client.scan_iter(match=f"{self.prefix}:*", count=1000)]

    def _age_hold(self, key: str, by_ms: int) -> None:
        if self.client.hget(key, "state") == b"held":
            self.client.hincrby(key, "expires_ms", -by_ms)
        left_ms = self.client.pttl(key)
        if left_ms >= 0:
            self.client.pexpire(key, left_ms - by_ms)


def decided(entry: Mapping[bytes, bytes]) -> UsageEvent:
    """The event of an outbox entry, as the relay publishes it."""
    template = from_wire(entry[b"e"])
    return template.settled(
        amount=int(entry[b"a"]), shortfall=int(entry[b"s"]), quota_epoch=int(entry[b"p"])
    )


def as_decided(batch: LeasedBatch, settlement: BatchSettlement) -> list[UsageEvent]:
    """The events of the runs that were not repeats, as their journal gets them."""
    new = [not figures.repeat for figures in settlement.runs]
    batch = replace(batch, runs=tuple(compress(batch.runs, new)))
    settlement = replace(settlement, runs=tuple(compress(settlement.runs, new)))
    return [from_wire(event.wire) for event in decided_or_asked(batch, settlement)]


def account_state(store: Store, **overrides: object) -> AccountState:
    """Of ``acme``: 100 microcredits, a month of which half is over, epoch 1, version 1."""
    now_ms = store.now_ms()
    fields: dict[str, Any] = {
        "customer": CUSTOMER,
        "epoch": 1,
        "version": 1,
        "suspended": False,
        "granted_microcredits": 100,
        "settled_microcredits": 0,
        "late_microcredits": 0,
        "period_start_ms": now_ms - 15 * DAY_MS,
        "period_end_ms": now_ms + 15 * DAY_MS,
    }
    return AccountState(**(fields | overrides))


def open_account(store: Store, **overrides: object) -> AccountState:
    state = account_state(store, **overrides)
    assert store.quota.load(state).value == "loaded"
    return state


def newer(state: AccountState, **overrides: object) -> AccountState:
    """The next version of a state within its epoch."""
    return replace(state, version=state.version + 1, **overrides)


def reserve(store: Store, task: str, amount: int = 10, **overrides: object) -> Reservation:
    fields: dict[str, Any] = {
        "task_id": task,
        "customer": CUSTOMER,
        "sku": SKU,
        "amount_microcredits": amount,
        "ttl_seconds": HOLD_TTL_SECONDS,
    }
    return store.quota.reserve(HoldRequest(**(fields | overrides)))


def usage(
    store: Store,
    task: str,
    amount: int = 10,
    *,
    sku: str = SKU,
    line: str | None = None,
    customer: str = CUSTOMER,
    metered_at: datetime | None = None,
    outcome: Outcome = Outcome.SUCCEEDED,
) -> UsageEvent:
    metered_at = metered_at or from_ms(store.now_ms())
    return UsageEvent(
        id=event_id(task, line or sku, metered_at),
        customer=customer,
        sku=sku,
        line=line or sku,
        outcome=outcome,
        quantity=1,
        amount_microcredits=amount,
        task_id=task,
    )


def failure(store: Store, task: str, *, admission: int = 1) -> UsageEvent:
    line = failed_line(SKU, admission)
    return usage(store, task, 0, line=line, outcome=Outcome.FAILED)


def denial(store: Store, task: str) -> UsageEvent:
    line = denied_line(SKU, "insufficient_credits")
    return usage(store, task, 0, line=line, outcome=Outcome.DENIED)


def settle(store: Store, task: str, *amounts: int) -> Settlement:
    """Settle a task with lines ``SKU``, ``OTHER_SKU`` … in the order of the amounts."""
    events = [
        usage(store, task, amount, sku=sku)
        for sku, amount in zip((SKU, OTHER_SKU, "third"), amounts, strict=False)
    ]
    return store.quota.settle(CUSTOMER, task, events)


def charged(settlement: Settlement) -> list[tuple[int, int]]:
    """Amount and shortfall of each line."""
    return [(line.amount_microcredits, line.shortfall_microcredits) for line in settlement.lines]


def view(store: Store, customer: str = CUSTOMER) -> AccountView:
    account = store.quota.account(customer)
    assert account is not None
    return account


def figures(store: Store) -> tuple[int, int, int]:
    """Held, settled and available of ``acme``."""
    account = view(store)
    return (
        account.held_microcredits,
        account.settled_microcredits,
        account.available_microcredits,
    )


def customers_of_one_shard(count: int) -> Sequence[str]:
    """Names of customers that share the shard of the first of them."""
    names = [f"customer{number}" for number in range(SHARDS * count * 4)]
    wanted = shard_of(names[0])
    return [name for name in names if shard_of(name) == wanted][:count]
