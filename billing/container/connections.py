"""A process's connections: engines, Redis clients, publishers, and the node's disk.

Each is made when it is first used, so that nothing connects at import and a command pays only for
what it needs. They belong to the process that made them: a forked child makes its own.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Self, cast

import sqlalchemy as sa
from redis import ConnectionError as RedisConnectionError
from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from billing.core import failpoints
from billing.core.clock import Clock, SystemClock
from billing.postgres import migrations
from billing.postgres.engines import owner_engine, replica_engine, writer_engine
from billing.redis.cluster import ClusterClient, is_cluster
from billing.redis.keys import RedisKeys
from billing.server_urls import Endpoints, endpoints_of, url_of
from billing.settings import Settings
from billing.transport.journal import Journal
from billing.transport.lease_wal import LeaseWal
from billing.transport.publishers import Publisher, publisher_for


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """Settings of the servers that a worker checks before it starts; None where one is away."""

    maxmemory_policy: str | None
    schema_revision: str | None
    schema_head: str
    database_answers: bool


class Connections:
    """Connections to PostgreSQL, Redis and RabbitMQ, and files on the node's disk.

    Args:
        settings: Name the servers and every limit.
        clock: The time.
        endpoints: URLs of the servers, if not those of ``settings``.
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
        for publisher in self._publishers:
            publisher.close()
        for name in ("engine", "writer_engine", "read_engine"):
            if name in self.__dict__:
                self.__dict__[name].dispose()
        for name in ("redis", "parent_redis", "relay_redis"):
            if name in self.__dict__:
                self.__dict__[name].close()

    @cached_property
    def endpoints(self) -> Endpoints:
        """URLs of all servers."""
        return self._given_endpoints or endpoints_of(self.settings)

    @cached_property
    def database_url(self) -> str:
        """PostgreSQL's URL; looked up alone, so that ``billing migrate`` needs no other server."""
        return self._url("database_url")

    @cached_property
    def _redis_url(self) -> str:
        return self._url("redis_url")

    @cached_property
    def broker_url(self) -> str:
        """RabbitMQ's URL, or that of Kombu's Redis transport."""
        return self._url("amqp_url")

    def _url(self, name: str) -> str:
        given = getattr(self._given_endpoints, name, None)
        return str(given) if given else url_of(self.settings, name)

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
        """PostgreSQL for questions about totals and receipts: the replica where there is one."""
        url = self.settings.database_read_url
        if url is None:
            return self.engine
        return replica_engine(url.get_secret_value(), self.database_url)

    @cached_property
    def keys(self) -> RedisKeys:
        """The names of Redis keys."""
        return RedisKeys(self.settings.redis_prefix)

    @cached_property
    def redis(self) -> Redis:
        """Redis with a task's time-out."""
        return self._redis_client(self.settings.redis_timeout_ms / 1000)

    @cached_property
    def parent_redis(self) -> Redis:
        """Redis with the short time-outs of a worker's main process."""
        return self._redis_client(self.settings.parent_redis_timeout_ms / 1000)

    @cached_property
    def relay_redis(self) -> Redis:
        """Redis with the relay's patience."""
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

    @cached_property
    def journal(self) -> Journal:
        """Second copies of the events in the outbox."""
        return Journal(self.settings.spool_dir / "journal", clock=self.clock)

    @cached_property
    def lease_wal(self) -> LeaseWal:
        """Write-ahead log of runs under leases, until the quota store has them."""
        return LeaseWal(
            self.settings.spool_dir / "slips", clock=self.clock, sync=self.settings.lease_sync
        )

    @cached_property
    def spool(self) -> Journal:
        """Events that could be neither put in the outbox nor published."""
        return Journal(self.settings.spool_dir / "spool", fsync=True, clock=self.clock)

    def publisher(self, stop: threading.Event | None = None) -> Publisher:
        """A publisher with confirms on a new connection; closed with the container.

        Args:
            stop: Once set, a ``publish`` in progress fails at once.
        """
        publisher = publisher_for(
            self.broker_url,
            exchange=self.settings.usage_exchange,
            queue=self.settings.usage_queue,
            timeout_seconds=self.settings.publish_timeout_seconds,
            cancelled=stop.is_set if stop else lambda: False,
        )
        self._publishers.append(publisher)
        return publisher

    def server_setup(self) -> ServerFacts:
        """Ask the servers for the facts that a worker checks before it starts."""
        try:
            memory = self.relay_redis.info("memory")
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
