"""The way of a task without a broker: meter, quota store, outbox, log writer, reconcile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Final, Self

import redis
import sqlalchemy as sa

from billing.catalog.skus import SkuStore
from billing.core.admission import Admission, TaskFacts
from billing.core.clock import Clock, SystemClock
from billing.core.errors import PublishFailed
from billing.core.reservation import LoadOutcome
from billing.core.usage_event import UsageEvent
from billing.metering.meter import Meter
from billing.postgres.engines import writer_engine
from billing.quota.account_loader import AccountLoader
from billing.quota.memory_store import MemoryQuotaStore
from billing.quota.port import QuotaStore
from billing.quota.redis_store import RedisQuotaStore
from billing.reconciliation.checks import InvariantChecks
from billing.redis.keys import SHARDS, RedisKeys
from billing.settings import Settings
from billing.transport.outbox import RedisOutbox
from billing.usage_log.log_writer import LogWriter

_BATCH: Final = 100
_MOST_BATCHES: Final = 1000


class Shelf:
    """Keeps events in memory; ``is_down`` makes it a broker that confirms nothing."""

    def __init__(self) -> None:
        self.events: list[UsageEvent] = []
        self.is_down = False

    def publish(self, events: Sequence[UsageEvent]) -> None:
        if self.is_down:
            raise PublishFailed
        self.events += events

    def append(self, events: Sequence[UsageEvent]) -> None:
        self.events += events


def redis_quota(client: redis.Redis, settings: Settings) -> RedisQuotaStore:
    """The quota store of a test's settings."""
    return RedisQuotaStore(
        client,
        prefix=settings.redis_prefix,
        hold_record_ttl_seconds=settings.hold_record_ttl_seconds,
        quarantine_seconds=settings.quarantine_seconds,
    )


class SmallSystem:
    """PostgreSQL, a quota store, and what stands between them.

    Args:
        engine: PostgreSQL as owner.
        database_url: The same, for the writer role.
        quota: The quota store.
        clock: The time.
        outbox: Where a ``RedisQuotaStore`` puts events; a ``MemoryQuotaStore`` has its own.
        loaded_at: The time that accounts are loaded at; the quota store's own without.
    """

    def __init__(
        self,
        engine: sa.Engine,
        database_url: str,
        quota: QuotaStore,
        clock: Clock,
        outbox: RedisOutbox | None = None,
        loaded_at: Clock | None = None,
    ) -> None:
        self.engine = engine
        self.quota = quota
        self.clock = clock
        self._outbox = outbox
        self._writer_engine = writer_engine(database_url)
        self.published, self.journal, self.spool = Shelf(), Shelf(), Shelf()
        # Redis admits by its own clock, so an account's period is that of today, whatever NOW is.
        own = SystemClock() if isinstance(quota, RedisQuotaStore) else clock
        self.loaded_at = loaded_at or own
        self.account_loader = AccountLoader(self._writer_engine, quota, self.loaded_at)
        self.invariant_checks = InvariantChecks(engine, quota, clock)
        self.writer = LogWriter(
            self._writer_engine,
            clock=clock,
            max_age=timedelta(days=90),
            max_ahead=timedelta(seconds=300),
            currency="USD",
        )
        self.meter = self.meter_with(self.account_loader.rebuild)

    def meter_with(self, refresh: Callable[[str], LoadOutcome]) -> Meter:
        """A meter on the same servers that loads missing balances by ``refresh``."""
        return Meter(
            quota=self.quota,
            skus=SkuStore(self.engine).get,
            refresh=refresh,
            publisher=self.published,
            journal=self.journal,
            spool=self.spool,
            clock=self.clock,
            hold_ttl_seconds=600,
            currency="USD",
        )

    @classmethod
    def on_redis(
        cls,
        engine: sa.Engine,
        database_url: str,
        client: redis.Redis,
        settings: Settings,
        clock: Clock,
    ) -> Self:
        """With a ``RedisQuotaStore`` under the settings' prefix."""
        outbox = RedisOutbox(client, RedisKeys(settings.redis_prefix))
        return cls(engine, database_url, redis_quota(client, settings), clock, outbox)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer_engine.dispose()

    def admit(
        self, task_id: str, *, customer: str = "acme", sku: str = "page-capture"
    ) -> Admission:
        """Hold for one task, metered at the clock's instant."""
        facts = TaskFacts(task_id=task_id, customer=customer, metered_at=self.clock.now())
        return self.meter.admit(facts, sku, None)

    def bill(self, task_id: str, *, customer: str = "acme", sku: str = "page-capture") -> Admission:
        """The whole way of one successful task, up to the outbox; or its denial."""
        admission = self.admit(task_id, customer=customer, sku=sku)
        if admission.admitted:
            self.meter.settle(admission, self.meter.recorder(admission.sku))
        else:
            self.meter.record_denial(admission)
        return admission

    def drain(self) -> int:
        """Log what is in the outbox and what was published, as relay and consumer do."""
        logged = 0
        for _ in range(_MOST_BATCHES):
            events = self._take()
            if not events:
                return logged
            self.log(events)
            logged += len(events)
        raise AssertionError("the outbox does not come to an end")

    def log(self, events: Sequence[UsageEvent]) -> None:
        """Log events and tell the quota store what came late."""
        result = self.writer.write([event.to_wire() for event in events])
        assert not result.dead, result.dead
        self.account_loader.sync_many(sorted(result.late_customers))

    def _take(self) -> list[UsageEvent]:
        taken, self.published.events = self.published.events, []
        if isinstance(self.quota, MemoryQuotaStore):
            count = len(self.quota.outbox)
            taken += self.quota.outbox[:count]
            # Whoever settles meanwhile appends after these.
            del self.quota.outbox[:count]
        elif self._outbox is not None:
            entries = self._outbox.read(range(SHARDS), _BATCH)
            taken += [entry.event for entry in entries]
            self._outbox.remove(entries)
        return taken
