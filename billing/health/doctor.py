"""What the doctor asks the servers. Only reads; each server by itself, so that one may be away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from statistics import median
from typing import Any, Final, cast
from urllib.parse import urlsplit

import redis
import sqlalchemy as sa
from kombu.exceptions import OperationalError
from redis.connection import parse_url

from billing.container import Container
from billing.core.clock import EPOCH, from_ms
from billing.core.credit_lease import LEASE_PREFIX
from billing.core.credits import format_credits
from billing.core.errors import QuotaUnavailable
from billing.core.periods import month_of, next_month
from billing.health import rules
from billing.health.doctor_cluster import examine_cluster
from billing.health.doctor_replica import examine_replica
from billing.health.facts import examine_keeping, examine_node
from billing.health.report_facts import examine_reporting
from billing.health.rules import HealthFinding, Level
from billing.postgres import migrations
from billing.postgres.partitions import existing_partitions, partition_name
from billing.postgres.schema import OWNER_ROLE, READER_ROLE, WRITER_ROLE
from billing.redis.cluster import is_cluster
from billing.transport.outbox import OutboxUnavailable
from billing.transport.topology import dead_queue
from billing.usage_log.queue_reader import broker

_ROUND_TRIPS: Final = 5
_ROLES: Final = {OWNER_ROLE, WRITER_ROLE, READER_ROLE}
_AMQP: Final = ("amqp", "amqps", "pyamqp")


def examine(container: Container) -> list[HealthFinding]:
    """Every check of every server."""
    return [
        *_postgresql(container),
        *examine_replica(container),
        *_redis(container),
        *_rabbitmq(container),
        *examine_node(container),
    ]


def _postgresql(container: Container) -> Iterator[HealthFinding]:
    try:
        with container.engine.connect() as connection:
            version = str(connection.exec_driver_sql("SHOW server_version").scalar())
            latency_ms, skew_seconds = _measure(
                container,
                lambda: connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one(),
            )
            yield from rules.server("PostgreSQL", version, latency_ms)
            yield rules.skew("PostgreSQL", skew_seconds)
            yield _roles(connection)
            yield from _schema(container, connection)
    except sa.exc.DBAPIError as error:
        yield rules.unreachable("PostgreSQL", "DATABASE_URL", _first_line(error.orig))


def _roles(connection: sa.Connection) -> HealthFinding:
    names = set(connection.execute(sa.text("SELECT rolname FROM pg_roles")).scalars())
    own = sa.text("SELECT rolsuper FROM pg_roles WHERE rolname = session_user")
    return rules.roles(_ROLES - names, superuser=bool(connection.scalar(own)))


def _schema(container: Container, connection: sa.Connection) -> Iterator[HealthFinding]:
    current = migrations.current(container.endpoints.database_url)
    yield rules.schema(current, migrations.head())
    if current is None:
        return
    ahead = container.settings.partitions_ahead_months
    this_month = month = month_of(container.clock.now())
    missing = []
    there = {partition.name for partition in existing_partitions(connection)}
    for _ in range(ahead + 1):
        if partition_name(month.start) not in there:
            missing.append(month.label)
        month = next_month(month)
    yield rules.partitions(missing, ahead, this_month=this_month.label)
    yield rules.dead_letters(sum(container.dead_letters.counts().values()), None)
    if current == migrations.head():
        yield from examine_keeping(container, connection)
        yield from examine_reporting(container, connection)


def _redis(container: Container) -> Iterator[HealthFinding]:
    try:
        client = container.redis
        info: dict[str, Any] = client.info()
        latency_ms, skew_seconds = _measure(container, lambda: _redis_time(client))
        is_valkey = "valkey_version" in info
        name = "Valkey" if is_valkey else "Redis"
        version = str(info["valkey_version" if is_valkey else "redis_version"])
        yield from rules.server(name, version, latency_ms)
        yield rules.skew(name, skew_seconds)
        yield rules.eviction(str(info["maxmemory_policy"]))
        yield from examine_cluster(container)
        yield _persistence(client, info)
        yield _databases(container)
        now = _redis_time(client)
        yield _outbox(container, now)
        yield _holds(container, now)
    except (redis.RedisError, QuotaUnavailable, OutboxUnavailable, OSError) as error:
        yield rules.unreachable("Redis", "REDIS_URL", _first_line(error))


def _redis_time(client: redis.Redis) -> datetime:
    seconds, microseconds = client.time()
    return EPOCH + timedelta(seconds=int(seconds), microseconds=int(microseconds))


def _persistence(client: redis.Redis, info: dict[str, Any]) -> HealthFinding:
    try:
        settings = cast("dict[str, str]", client.config_get("appendfsync", "save"))
    except redis.ResponseError:
        # Managed servers do not show their configuration.
        settings = {"appendfsync": "unknown", "save": "unknown"}
    return rules.persistence(
        append_only=bool(int(info["aof_enabled"])),
        fsync=settings.get("appendfsync", "unknown"),
        snapshots=settings.get("save", ""),
        last_write_ok=info["rdb_last_bgsave_status"] == "ok"
        and info["aof_last_write_status"] == "ok",
    )


def _databases(container: Container) -> HealthFinding:
    endpoints = container.endpoints
    others = [("result backend", _place(endpoints.result_url))]
    others.append(("broker", _place(endpoints.amqp_url or "")))
    return rules.databases(_place(endpoints.redis_url), others)


def _place(url: str) -> str:
    """Server and database of a Redis URL; empty for what is no Redis URL."""
    if is_cluster(url):
        return urlsplit(url).netloc.rpartition("@")[2]
    try:
        parts: dict[str, Any] = cast("Any", parse_url)(
            url.replace("redis+socket:", "unix:").replace("virtual_host=", "db=")
        )
    except ValueError:
        return ""
    host = str(parts.get("path") or parts.get("host", "localhost")).replace(
        "localhost", "127.0.0.1"
    )
    port = "" if "path" in parts else f":{parts.get('port', 6379)}"
    return f"{host}{port}/{parts.get('db', 0)}"


def _outbox(container: Container, now: datetime) -> HealthFinding:
    oldest_ms = container.outbox.oldest_ms()
    age = None if oldest_ms is None else (now - from_ms(oldest_ms)).total_seconds()
    return rules.outbox(container.outbox.length(), age, container.outbox.bad_length())


def _holds(container: Container, now: datetime) -> HealthFinding:
    holds = container.quota.open_holds()
    latest = now - timedelta(seconds=rules.HOLD_SWEEP_SECONDS)
    overdue = [hold for hold in holds if from_ms(hold.expires_at_ms) < latest]
    locked = format_credits(sum(hold.held_microcredits for hold in overdue))
    leases = sum(hold.task_id.startswith(LEASE_PREFIX) for hold in holds)
    return rules.overdue_holds(len(overdue), len(holds), locked, leases=leases)


def _rabbitmq(container: Container) -> Iterator[HealthFinding]:
    url = container.endpoints.amqp_url or ""
    is_amqp = url.partition("://")[0] in _AMQP
    connection: Any = broker(url)()
    try:
        with connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=3)
            depth, consumers = _queue(connection, container.settings.usage_queue)
            if is_amqp:
                latency_ms = _latency_ms(lambda: connection.channel().close())
                version = str(connection.connection.server_properties["version"])
                yield from rules.server("RabbitMQ", version, latency_ms)
            else:
                yield _KOMBU
            yield rules.queue(
                container.settings.usage_queue,
                depth=depth,
                consumers=consumers if is_amqp else None,
            )
            waiting, _ = _queue(connection, dead_queue(container.settings.usage_queue))
            if waiting:
                yield rules.dead_letters(0, waiting)
    except _broker_errors(connection) as error:
        yield rules.unreachable("RabbitMQ", "AMQP_URL", _first_line(error))


_KOMBU: Final = HealthFinding(
    check="RabbitMQ",
    level=Level.WARN,
    found="none; Kombu's Redis transport is in its place",
    meaning="no confirms, no copies: a Redis that loses its data loses tasks and usage on its way",
    remedy="set AMQP_URL; for a laptop this will do",
)


def queue_depth(container: Container) -> int | None:
    """How many usage events wait in the queue; None where there is no queue or no answer."""
    connection: Any = broker(container.endpoints.amqp_url or "")()
    try:
        with connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=3)
            return _queue(connection, container.settings.usage_queue)[0]
    except _broker_errors(connection):
        return None


def _broker_errors(connection: Any) -> tuple[type[Exception], ...]:  # noqa: ANN401 - as below
    return (*connection.connection_errors, *connection.channel_errors, OperationalError, OSError)


def _queue(connection: Any, name: str) -> tuple[int | None, int | None]:  # noqa: ANN401 - kombu ships no types
    """Ready messages and consumers of a queue, without making it; None where there is none."""
    channel = connection.channel()
    try:
        found = channel.queue_declare(queue=name, passive=True)
    except connection.channel_errors:
        # A refused declaration closes an AMQP channel.
        return None, None
    channel.close()
    return found.message_count, found.consumer_count


def _measure(container: Container, ask_time: Callable[[], datetime]) -> tuple[float, float]:
    """Median round trip in milliseconds, and how far ahead the server's clock is, in seconds."""
    trips, skews = [], []
    for _ in range(_ROUND_TRIPS):
        began, before = time.perf_counter(), container.clock.now()
        theirs = ask_time()
        trips.append(time.perf_counter() - began)
        middle = before + (container.clock.now() - before) / 2
        skews.append((theirs - middle).total_seconds())
    return median(trips) * 1000, median(skews)


def _latency_ms(question: Callable[[], object]) -> float:
    trips = []
    for _ in range(_ROUND_TRIPS):
        began = time.perf_counter()
        question()
        trips.append(time.perf_counter() - began)
    return median(trips) * 1000


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
