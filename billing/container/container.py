"""The composition root: every store and service of one process, built when it is first used."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cached_property
from typing import Final

from redis import Redis

from billing.audit.sealer import SealingResult
from billing.catalog.customers import CustomerStore
from billing.catalog.grants import GrantStore
from billing.catalog.sku_cache import CatalogUnavailable, SkuCache
from billing.catalog.skus import SkuStore
from billing.container.audit_services import AuditServices
from billing.container.connections import Connections
from billing.container.reporting_services import ReportingServices
from billing.core.errors import QuotaUnavailable
from billing.core.reservation import LoadOutcome
from billing.core.sku import Sku
from billing.metering.lease_manager import LeaseManager
from billing.metering.lease_recovery import LeaseRecovery
from billing.metering.meter import Meter
from billing.postgres.partitions import ensure_partitions, months_back
from billing.postgres.replica import AsOf, as_of
from billing.quota.account_loader import AccountLoader
from billing.quota.hold_repair import HoldRepair
from billing.quota.port import QuotaStore
from billing.quota.redis_store import RedisQuotaStore
from billing.reconciliation.checks import InvariantChecks
from billing.reconciliation.discrepancies import DiscrepancyStore
from billing.reconciliation.in_flight import InFlightUsage
from billing.reconciliation.redis_restart_watch import RedisRestartWatch
from billing.reconciliation.repair import Repair
from billing.redis.cluster import ClusterClient
from billing.transport.cluster_outbox import ClusterOutbox
from billing.transport.outbox import RedisOutbox
from billing.transport.queue_depth import queue_depth
from billing.transport.relay import Relay
from billing.usage_log.consumer import UsageConsumer
from billing.usage_log.dead_letters import DeadLetters
from billing.usage_log.log_writer import BatchResult, LogWriter
from billing.usage_log.queue_reader import broker
from billing.usage_log.receipts import Receipts
from billing.usage_log.usage_queries import UsageQueries

_LEAST_MONTHS_BACK: Final = 3


class Container(Connections):
    """Every store and service of one process, on its connections."""

    def close(self) -> None:
        """Close everything that was opened."""
        self.end_leases()
        super().close()

    # -- the catalogue and the log -------------------------------------------------------------

    @cached_property
    def customers(self) -> CustomerStore:
        """Customers and budgets."""
        return CustomerStore(self.engine)

    @cached_property
    def catalog(self) -> SkuStore:
        """SKUs and prices."""
        return SkuStore(self.engine)

    @cached_property
    def grants(self) -> GrantStore:
        """Grants."""
        return GrantStore(self.engine)

    @cached_property
    def usage(self) -> UsageQueries:
        """Totals, from the rollups."""
        return UsageQueries(self.engine, self.audit.archived_usage)

    @cached_property
    def receipts(self) -> Receipts:
        """Lines, from the log."""
        return Receipts(self.engine, self.audit.archived_usage)

    @cached_property
    def usage_read(self) -> UsageQueries:
        """Totals for customers, from the replica where there is one.

        Comparisons with something newer (balances, reconcile) ask ``usage``.
        """
        return UsageQueries(self.read_engine)

    @cached_property
    def receipts_read(self) -> Receipts:
        """Lines for customers, from the replica where there is one."""
        return Receipts(self.read_engine, self.audit.archived_usage)

    def as_of(self) -> AsOf | None:
        """The instant up to which ``usage_read`` and ``receipts_read`` are complete.

        None: there is no replica.

        A replica that is away is not None: the primary answers, and that is said.
        """
        return None if self.settings.database_read_url is None else as_of(self.read_engine)

    @cached_property
    def dead_letters(self) -> DeadLetters:
        """Messages that could not be billed, each with its reason."""
        return DeadLetters(self.engine)

    @cached_property
    def writer(self) -> LogWriter:
        """Writer of batches into the log."""
        return LogWriter(
            self.writer_engine,
            clock=self.clock,
            max_age=timedelta(days=self.settings.event_max_age_days),
            max_ahead=timedelta(seconds=self.settings.event_max_ahead_seconds),
            currency=self.settings.currency,
        )

    @cached_property
    def audit(self) -> AuditServices:
        """The log's seals and archives."""
        return AuditServices(self.settings, self.engine)

    def seal(self, now: datetime | None = None) -> SealingResult:
        """Seal every hour of the log that is over; see ``billing.audit.sealer.Sealer.seal``.

        Args:
            now: The present instant; the clock's without.

        Raises:
            SealingBusyError: Another process is at it, and seals what is due.
        """
        return self.audit.sealer.seal(now or self.clock.now())

    def ensure_partitions(self) -> list[str]:
        """Make the log's missing partitions; returns their names."""
        now = self.clock.now()
        oldest = timedelta(days=self.settings.event_max_age_days)
        with self.engine.begin() as connection:
            return ensure_partitions(
                connection,
                now,
                back_months=max(_LEAST_MONTHS_BACK, months_back(now, oldest)),
                ahead_months=self.settings.partitions_ahead_months,
            )

    # -- balances and the outbox ---------------------------------------------------------------

    def _quota_on(self, client: Redis) -> RedisQuotaStore:
        return RedisQuotaStore(
            client,
            prefix=self.settings.redis_prefix,
            hold_record_ttl_seconds=self.settings.hold_record_ttl_seconds,
            quarantine_seconds=self.settings.quarantine_seconds,
        )

    @cached_property
    def quota(self) -> QuotaStore:
        """The quota store."""
        return self._quota_on(self.redis)

    @cached_property
    def account_loader(self) -> AccountLoader:
        """Loader of accounts from PostgreSQL into the quota store."""
        return AccountLoader(self.writer_engine, self.quota, self.clock)

    def sync(self, customer: str) -> LoadOutcome:
        """Bring one customer's changes from PostgreSQL to Redis; see ``AccountLoader.sync``."""
        return self.account_loader.sync(customer)

    @cached_property
    def outbox(self) -> RedisOutbox:
        """Events not yet confirmed by RabbitMQ."""
        client: object = self.relay_redis
        if isinstance(client, ClusterClient):
            return ClusterOutbox(client, self.keys)
        return RedisOutbox(self.relay_redis, self.keys)

    def relay(self, stop: threading.Event | None = None) -> Relay:
        """A relay, which drains outbox and spool to RabbitMQ.

        Args:
            stop: The event given to its ``run``, so that even a publish in progress ends with it.
        """
        return Relay(
            self.outbox,
            self.publisher(stop),
            self.journal,
            self.spool,
            owner=f"{self.settings.node}:{os.getpid()}:{secrets.token_hex(4)}",
            batch=self.settings.relay_batch,
            lease_ms=self.settings.relay_lease_seconds * 1000,
            clock=self.clock,
            settle_abandoned=LeaseRecovery(
                self.lease_wal, self._quota_on(self.relay_redis), self.journal
            ).check,
        )

    def consumer(self, on_batch: Callable[[BatchResult], None] | None = None) -> UsageConsumer:
        """A consumer, which reads the usage queue into the log.

        Args:
            on_batch: Called with every batch's result, after its COMMIT.
        """
        return UsageConsumer(
            broker(self.broker_url),
            exchange=self.settings.usage_exchange,
            queue=self.settings.usage_queue,
            writer=self.writer,
            batch=self.settings.consumer_batch,
            linger_seconds=self.settings.consumer_linger_ms / 1000,
            on_late=self.account_loader.sync_many,
            on_batch=on_batch,
        )

    # -- metering ------------------------------------------------------------------------------

    @cached_property
    def _catalog_cache(self) -> SkuCache:
        return SkuCache(self.catalog, self.clock, self.settings.catalog_ttl_seconds)

    def sku(self, sku_id: str) -> Sku:
        """The SKU of an id, from this process's copy of the catalogue.

        Raises:
            NotFound: There is none.
            QuotaUnavailable: PostgreSQL is away and no copy was ever made.
        """
        try:
            return self._catalog_cache.sku(sku_id)
        except CatalogUnavailable as error:
            raise QuotaUnavailable(str(error)) from error

    @cached_property
    def leases(self) -> LeaseManager:
        """This process's leases; ended with ``end_leases``."""
        return LeaseManager(
            self._quota_on(self.redis),
            self.lease_wal,
            self.journal,
            name=self.settings.node,
            window_seconds=self.settings.lease_seconds,
            # What is admitted just before the window ends has as long as any other.
            ttl_seconds=self.settings.hold_ttl_seconds + self.settings.lease_seconds,
        )

    def end_leases(self) -> None:
        """Flush and give back this process's leases, if it has any."""
        leases: LeaseManager | None = self.__dict__.get("leases")
        if leases is not None:
            leases.close()

    @cached_property
    def meter(self) -> Meter:
        """The meter, which admits tasks and settles them."""
        return self._meter_on(self.quota, self.leases)

    @cached_property
    def parent_meter(self) -> Meter:
        """The same, with the short time-outs of a worker's main process."""
        return self._meter_on(self._quota_on(self.parent_redis))

    def _meter_on(self, quota: QuotaStore, leases: LeaseManager | None = None) -> Meter:
        return Meter(
            quota=quota,
            skus=self.sku,
            refresh=AccountLoader(self.writer_engine, quota, self.clock).rebuild,
            publisher=self.publisher(),
            journal=self.journal,
            spool=self.spool,
            clock=self.clock,
            hold_ttl_seconds=self.settings.hold_ttl_seconds,
            currency=self.settings.currency,
            leases=leases,
        )

    @cached_property
    def reporting(self) -> ReportingServices:
        """Services between the rollups and a billing provider."""
        return ReportingServices(self.settings, self.engine, self.catalog, self.clock)

    @cached_property
    def invariant_checks(self) -> InvariantChecks:
        """Checks of every invariant."""
        return InvariantChecks(self.engine, self.quota, self.clock)

    @cached_property
    def redis_restart_watch(self) -> RedisRestartWatch:
        """Watch of this node for restarts of Redis, after which balances are checked at once."""
        file = self.settings.spool_dir / "books" / "generation"
        return RedisRestartWatch(self.outbox.generation, file, self.clock)

    def _ready_messages(self) -> int | None:
        depth = queue_depth(self.broker_url, self.settings.usage_queue)
        return None if depth is None else depth.ready

    @cached_property
    def repair(self) -> Repair:
        """Repair of discrepancies."""
        in_flight = InFlightUsage(self.engine, self.outbox, self.journal, self._ready_messages)
        return Repair(
            self.engine,
            quota=self.quota,
            checks=self.invariant_checks,
            in_flight=in_flight,
            account_loader=self.account_loader,
            hold_repair=HoldRepair(self.redis, self.keys),
            publisher=self.publisher,
            discrepancies=DiscrepancyStore(self.engine),
            clock=self.clock,
        )
