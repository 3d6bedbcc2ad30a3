"""One process's servers and stores.

A ``Container`` is what one process works with. Everything in it is built when it is first used, so
that nothing connects at import and a command pays only for what it needs. It belongs to the process
that built it: a forked child builds its own.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from types import TracebackType
from typing import Final, Self, TypedDict, cast

import sqlalchemy as sa
from redis import ConnectionError as RedisConnectionError
from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from billing.audit.sealer import SealingResult
from billing.catalog.customers import CustomerStore
from billing.catalog.grants import GrantStore
from billing.catalog.sku_cache import CatalogUnavailable, SkuCache
from billing.catalog.skus import SkuStore
from billing.container.audit_services import AuditServices
from billing.container.reconciliation_services import build_repair
from billing.container.reporting_services import ReportingServices
from billing.core import failpoints
from billing.core.clock import Clock, SystemClock
from billing.core.errors import QuotaUnavailable
from billing.core.reservation import LoadOutcome, QuotaStore
from billing.core.sku import Sku
from billing.metering.lease_manager import LeaseManager
from billing.metering.lease_recovery import LeaseRecovery
from billing.metering.meter import Meter
from billing.postgres import migrations
from billing.postgres.engines import owner_engine, replica_engine, writer_engine
from billing.postgres.partitions import ensure_partitions, months_back
from billing.postgres.replica import AsOf, as_of
from billing.quota.account_loader import AccountLoader
from billing.quota.redis_store import RedisQuotaStore
from billing.reconciliation.checks import InvariantChecks
from billing.reconciliation.redis_restart_watch import RedisRestartWatch
from billing.reconciliation.repair import Repair
from billing.redis.cluster import ClusterClient, is_cluster
from billing.redis.keys import RedisKeys
from billing.server_urls import Endpoints, endpoints_of, url_of
from billing.settings import Settings
from billing.transport.cluster_outbox import ClusterOutbox
from billing.transport.journal import Journal
from billing.transport.lease_wal import LeaseWal
from billing.transport.outbox import RedisOutbox
from billing.transport.publishers import Publisher, publisher_for
from billing.transport.relay import Relay
from billing.usage_log.consumer import UsageConsumer
from billing.usage_log.dead_letters import DeadLetters
from billing.usage_log.log_writer import BatchResult, LogWriter
from billing.usage_log.queue_reader import broker
from billing.usage_log.receipts import Receipts
from billing.usage_log.usage_queries import UsageQueries

LEAST_MONTHS_BACK: Final = 3


class ServerFacts(TypedDict):
    """What the servers say of themselves; None where one did not answer."""

    maxmemory_policy: str | None
    schema_revision: str | None
    schema_head: str
    database_answers: bool


class Container:
    """One process's servers and stores.

    Args:
        settings: Where the servers are, and every limit.
        clock: The time.
        endpoints: Where the servers are, if not what ``settings`` says.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock | None = None,
        endpoints: Endpoints | None = None,
    ) -> None:
        self.settings = settings
        self.clock: Clock = clock or SystemClock()
        self._given_endpoints = endpoints
        self._publishers: list[Publisher] = []
        failpoints.arm(settings.failpoints, settings.spool_dir / "failpoints")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what was opened."""
        self.end_leases()
        for publisher in self._publishers:
            publisher.close()
        for name in ("engine", "writer_engine", "read_engine"):
            if name in self.__dict__:
                self.__dict__[name].dispose()
        for name in ("redis", "_parent_redis", "_relay_redis"):
            if name in self.__dict__:
                self.__dict__[name].close()

    @cached_property
    def endpoints(self) -> Endpoints:
        """Where the servers are."""
        return self._given_endpoints or endpoints_of(self.settings)

    @cached_property
    def database_url(self) -> str:
        """PostgreSQL; asked for alone, so that ``billing migrate`` needs no other server."""
        return self._url("database_url")

    @cached_property
    def _redis_url(self) -> str:
        return self._url("redis_url")

    @cached_property
    def _broker_url(self) -> str:
        return self._url("amqp_url")

    def _url(self, name: str) -> str:
        given = getattr(self._given_endpoints, name, None)
        return str(given) if given else url_of(self.settings, name)

    # -- PostgreSQL ----------------------------------------------------------------------------

    @cached_property
    def engine(self) -> sa.Engine:
        """PostgreSQL as the schema's owner: the catalogue, accounts, grants, partitions."""
        return owner_engine(self.database_url)

    @cached_property
    def writer_engine(self) -> sa.Engine:
        """PostgreSQL as the writer: may insert into the log and nothing more of it."""
        return writer_engine(self.database_url)

    @cached_property
    def read_engine(self) -> sa.Engine:
        """For questions about totals and receipts: the replica where there is one."""
        url = self.settings.database_read_url
        if url is None:
            return self.engine
        return replica_engine(url.get_secret_value(), self.database_url)

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
        """Totals as customers are shown them: from the replica, where there is one.

        What compares totals with something newer (balances, reconcile) asks ``usage``.
        """
        return UsageQueries(self.read_engine)

    @cached_property
    def receipts_read(self) -> Receipts:
        """Lines as customers are shown them: from the replica, where there is one."""
        return Receipts(self.read_engine, self.audit.archived_usage)

    def as_of(self) -> AsOf | None:
        """As of when ``usage_read`` and ``receipts_read`` answer; None: there is no replica.

        A replica that is away is not None: the primary answers, and that is said.
        """
        return None if self.settings.database_read_url is None else as_of(self.read_engine)

    @cached_property
    def dead_letters(self) -> DeadLetters:
        """What could not be billed, with its reason."""
        return DeadLetters(self.engine)

    @cached_property
    def writer(self) -> LogWriter:
        """Writes batches into the log."""
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
                back_months=max(LEAST_MONTHS_BACK, months_back(now, oldest)),
                ahead_months=self.settings.partitions_ahead_months,
            )

    # -- Redis ---------------------------------------------------------------------------------

    @cached_property
    def keys(self) -> RedisKeys:
        """The names of Redis keys."""
        return RedisKeys(self.settings.redis_prefix)

    @cached_property
    def redis(self) -> Redis:
        """Redis, with a task's patience."""
        return self._redis_client(self.settings.redis_timeout_ms / 1000)

    @cached_property
    def _parent_redis(self) -> Redis:
        return self._redis_client(self.settings.parent_redis_timeout_ms / 1000)

    @cached_property
    def _relay_redis(self) -> Redis:
        # The relay reads hundreds of events at once, and nobody waits for it.
        return self._redis_client(10.0)

    def _redis_client(self, timeout_seconds: float) -> Redis:
        if is_cluster(self._redis_url):
            # It has the part of redis-py's interface that is used here.
            return cast("Redis", ClusterClient(self._redis_url, timeout_seconds=timeout_seconds))
        return Redis.from_url(
            self._redis_url,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            # One repeat for a connection that was closed while idle; every verb may be repeated.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
            health_check_interval=0,
        )

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
        """Carries accounts from PostgreSQL to the quota store."""
        return AccountLoader(self.writer_engine, self.quota, self.clock)

    def sync(self, customer: str) -> LoadOutcome:
        """Tell Redis what changed in PostgreSQL for one customer; see ``AccountLoader.sync``."""
        return self.account_loader.sync(customer)

    @cached_property
    def outbox(self) -> RedisOutbox:
        """Events not yet confirmed by RabbitMQ."""
        client: object = self._relay_redis
        if isinstance(client, ClusterClient):
            return ClusterOutbox(client, self.keys)
        return RedisOutbox(self._relay_redis, self.keys)

    # -- the node's disk, RabbitMQ -------------------------------------------------------------

    @cached_property
    def journal(self) -> Journal:
        """Second copies of what is in the outbox."""
        return Journal(self.settings.spool_dir / "journal", clock=self.clock)

    @cached_property
    def lease_wal(self) -> LeaseWal:
        """What runs under leases were, until the quota store is told."""
        return LeaseWal(
            self.settings.spool_dir / "slips", clock=self.clock, sync=self.settings.lease_sync
        )

    @cached_property
    def spool(self) -> Journal:
        """What could be neither put in the outbox nor published."""
        return Journal(self.settings.spool_dir / "spool", fsync=True, clock=self.clock)

    def publisher(self, stop: threading.Event | None = None) -> Publisher:
        """A new connection's publisher, with confirms; closed with the system.

        Args:
            stop: When set, a ``publish`` in progress fails at once.
        """
        publisher = publisher_for(
            self._broker_url,
            exchange=self.settings.usage_exchange,
            queue=self.settings.usage_queue,
            timeout_seconds=self.settings.publish_timeout_seconds,
            cancelled=stop.is_set if stop else lambda: False,
        )
        self._publishers.append(publisher)
        return publisher

    def relay(self, stop: threading.Event | None = None) -> Relay:
        """Drains outbox and spool to RabbitMQ.

        Args:
            stop: What its ``run`` will be given, so that even a publish in progress ends with it.
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
            left_slips=LeaseRecovery(
                self.lease_wal, self._quota_on(self._relay_redis), self.journal
            ).check,
        )

    def consumer(self, on_batch: Callable[[BatchResult], None] | None = None) -> UsageConsumer:
        """Reads the usage queue into the log.

        Args:
            on_batch: Told of every batch, after its COMMIT.
        """
        return UsageConsumer(
            broker(self._broker_url),
            exchange=self.settings.usage_exchange,
            queue=self.settings.usage_queue,
            writer=self.writer,
            batch=self.settings.consumer_batch,
            linger_seconds=self.settings.consumer_linger_ms / 1000,
            on_late=self.account_loader.sync_many,
            on_batch=on_batch,
        )

    # -- the way of a task ---------------------------------------------------------------------

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
        """Tell what is to be told of leases, and give them back; nothing where there are none."""
        leases: LeaseManager | None = self.__dict__.get("leases")
        if leases is not None:
            leases.close()

    @cached_property
    def meter(self) -> Meter:
        """Admits tasks and settles them."""
        return self._meter_on(self.quota, self.leases)

    @cached_property
    def parent_meter(self) -> Meter:
        """The same, with the short time-outs of a worker's main process."""
        return self._meter_on(self._quota_on(self._parent_redis))

    def _meter_on(self, quota: QuotaStore, leases: LeaseManager | None = None) -> Meter:
        sync = AccountLoader(self.writer_engine, quota, self.clock)
        return Meter(
            quota=quota,
            skus=self.sku,
            refresh=sync.rebuild,
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
        """Between the rollups and a billing provider."""
        return ReportingServices(self.settings, self.engine, self.catalog, self.clock)

    @cached_property
    def invariant_checks(self) -> InvariantChecks:
        """Checks every invariant."""
        return InvariantChecks(self.engine, self.quota, self.clock)

    @cached_property
    def redis_restart_watch(self) -> RedisRestartWatch:
        """Says when the books are to be checked out of turn, as this node has seen Redis."""
        file = self.settings.spool_dir / "books" / "generation"
        return RedisRestartWatch(self.outbox.generation, file, self.clock)

    @cached_property
    def repair(self) -> Repair:
        """Finds what does not agree and puts it right."""
        return build_repair(self)

    def server_setup(self) -> ServerFacts:
        """What a worker asks before it starts."""
        try:
            memory = self._relay_redis.info("memory")
            policy = memory.get("maxmemory_policy")
        except RedisError:
            policy = None
        try:
            revision, answers = migrations.current(self.database_url), True
        except sa.exc.DBAPIError:
            revision, answers = None, False
        return ServerFacts(
            maxmemory_policy=policy,
            schema_revision=revision,
            schema_head=migrations.head(),
            database_answers=answers,
        )


__all__: Sequence[str] = ["Container", "ServerFacts", "endpoints_of"]
