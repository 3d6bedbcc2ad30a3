"""The doctor: every fact under its rule. Each server by itself, so that one may be away."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final, cast

import redis
import sqlalchemy as sa

from billing.core.errors import QuotaUnavailable, first_line
from billing.core.periods import month_of
from billing.health import facts, rules, usage_rules
from billing.health.facts import HealthSources
from billing.health.finding import HealthFinding
from billing.health.report_facts import report_findings
from billing.postgres import migrations
from billing.redis.cluster import ClusterClient
from billing.transport.outbox import OutboxUnavailable
from billing.transport.queue_depth import BrokerUnavailable, depth_of, open_broker
from billing.transport.topology import dead_queue

_AMQP: Final = ("amqp", "amqps", "pyamqp")


def examine(sources: HealthSources) -> list[HealthFinding]:
    """Every check of every server, of reporting and of this node."""
    return [
        *_postgresql(sources),
        *_replica(sources),
        *_redis(sources),
        *_rabbitmq(sources),
        *node_findings(sources),
    ]


def _postgresql(sources: HealthSources) -> Iterator[HealthFinding]:
    name = "PostgreSQL"
    try:
        with sources.engine.connect() as connection:

            def ask_time() -> datetime:
                return cast("datetime", connection.scalar(sa.select(sa.func.clock_timestamp())))

            version = str(connection.exec_driver_sql("SHOW server_version").scalar())
            latency_ms, skew_seconds = facts.round_trip(sources.clock, ask_time)
            yield rules.server(name, version, latency_ms)
            yield rules.skew(name, skew_seconds)
            missing, superuser = facts.missing_roles(connection)
            yield rules.roles(missing, superuser=superuser)
            yield from _schema(sources, connection)
    except sa.exc.DBAPIError as error:
        yield rules.unreachable(name, "DATABASE_URL", first_line(error.orig))


def _schema(sources: HealthSources, connection: sa.Connection) -> Iterator[HealthFinding]:
    current = migrations.current(sources.endpoints.database_url)
    yield rules.schema(current, migrations.head())
    if current is None:
        return
    now, ahead = sources.clock.now(), sources.settings.partitions_ahead_months
    missing = facts.missing_partitions(connection, now, ahead)
    yield rules.partitions(missing, ahead, this_month=month_of(now).label)
    yield usage_rules.dead_letters(facts.open_dead_letters(sources), None)
    if current == migrations.head():
        yield from log_findings(sources)
        yield from report_findings(sources)


def log_findings(sources: HealthSources) -> Iterator[HealthFinding]:
    """Discrepancies, seals and archives."""
    found = facts.log_facts(sources)
    yield usage_rules.discrepancies(found.open_by_kind)
    yield usage_rules.seals(found.newest_seal, found.unsealed_seconds)
    yield usage_rules.archives(
        len(found.archives),
        facts.missing_archive_files(found.archives, sources.settings.archive_dir),
        list(facts.stuck_archives(found.archives, sources.clock.now())),
    )


def _replica(sources: HealthSources) -> Iterator[HealthFinding]:
    if sources.settings.database_read_url is None:
        return
    try:
        yield rules.replica(*facts.replica_lag(sources.engine, sources.read_engine))
    except sa.exc.DBAPIError as error:
        yield rules.replica(None, 0, 0, problem=str(error.orig).strip().partition("\n")[0])


def _redis(sources: HealthSources) -> Iterator[HealthFinding]:
    client: Any = sources.redis
    try:
        info: dict[str, Any] = client.info()
        trip = facts.round_trip(sources.clock, lambda: facts.redis_time(client))
        is_valkey = "valkey_version" in info
        name = "Valkey" if is_valkey else "Redis"
        yield rules.server(name, str(info[f"{name.lower()}_version"]), trip[0])
        yield rules.skew(name, trip[1])
        yield rules.eviction(str(info["maxmemory_policy"]))
        if isinstance(client, ClusterClient):
            yield rules.cluster(client.members())
        yield rules.persistence(**facts.redis_persistence(client, info))
        urls = sources.endpoints
        others = {"result backend": urls.result_url, "broker": urls.amqp_url or ""}
        yield rules.databases(
            facts.redis_place(urls.redis_url),
            [(other, facts.redis_place(url)) for other, url in others.items()],
        )
        yield usage_rules.outbox(*facts.outbox_facts(sources))
        yield usage_rules.overdue_holds(**facts.hold_facts(sources)._asdict())
    except (redis.RedisError, QuotaUnavailable, OutboxUnavailable, OSError) as error:
        yield rules.unreachable("Redis", "REDIS_URL", first_line(error))


def _rabbitmq(sources: HealthSources) -> Iterator[HealthFinding]:
    url, queue = sources.endpoints.amqp_url or "", sources.settings.usage_queue
    is_amqp = url.partition("://")[0] in _AMQP
    try:
        with open_broker(url) as connection:
            depth = depth_of(connection, queue)
            if is_amqp:

                def ask() -> datetime:
                    connection.channel().close()
                    return sources.clock.now()

                latency_ms, _ = facts.round_trip(sources.clock, ask)
                version = str(connection.connection.server_properties["version"])
                yield rules.server("RabbitMQ", version, latency_ms)
            else:
                yield rules.no_rabbitmq()
            yield rules.queue(
                queue,
                depth=depth.ready if depth.exists else None,
                consumers=depth.consumers if is_amqp and depth.exists else None,
            )
            waiting = depth_of(connection, dead_queue(queue)).ready
            if waiting:
                yield usage_rules.dead_letters(0, waiting)
    except BrokerUnavailable as error:
        yield rules.unreachable("RabbitMQ", "AMQP_URL", str(error))


def node_findings(sources: HealthSources) -> Iterator[HealthFinding]:
    """Usage that waits on this node's disk."""
    yield usage_rules.spool(*facts.spool_facts(sources))
    yield usage_rules.leased_runs(*facts.leased_run_facts(sources))
