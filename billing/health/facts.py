"""Facts about servers, the log and this node's disk; each is gathered in one place. Only reads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple, Protocol, cast
from urllib.parse import urlsplit

import redis
import sqlalchemy as sa
from redis.connection import parse_url

from billing.archive.catalog import Archive, ArchiveState, archives
from billing.audit.sealer import newest_seal, unsealed_since
from billing.core.clock import EPOCH, Clock, from_ms
from billing.core.credit_lease import LEASE_PREFIX
from billing.core.credits import format_credits
from billing.core.periods import month_of, next_month
from billing.health.usage_rules import ARCHIVED_WITHIN, HOLD_SWEEP_SECONDS, LEFT_SECONDS
from billing.postgres.partitions import existing_partitions, partition_name
from billing.postgres.schema import OWNER_ROLE, READER_ROLE, WRITER_ROLE
from billing.providers.port import Provider, ProviderMeter
from billing.quota.port import QuotaStore
from billing.reconciliation.discrepancies import DiscrepancyStore
from billing.reconciliation.invariants import DiscrepancyKind
from billing.redis.cluster import is_cluster
from billing.server_urls import Endpoints
from billing.settings import Settings
from billing.transport.journal import Journal
from billing.transport.lease_wal import LeaseWal
from billing.transport.outbox import RedisOutbox
from billing.usage_log.dead_letters import DeadLetters

_ROUND_TRIPS: Final = 5
_REPLICA_PATIENCE_SECONDS: Final = 3.0
_REPLICA_POLL_SECONDS: Final = 0.02
_BEHIND: Final = sa.text(
    "SELECT pg_is_in_recovery(), "
    "pg_wal_lsn_diff(CAST(:written AS pg_lsn), pg_last_wal_replay_lsn())"
)
_UNFINISHED: Final = frozenset(
    {
        ArchiveState.EXPORTING,
        ArchiveState.EXPORTED,
        ArchiveState.VERIFIED,
        ArchiveState.DETACHED,
    }
)


class ReportingParts(Protocol):
    """Reporting, as far as health asks about it."""

    @property
    def provider(self) -> Provider:
        """The present provider; raises ``ConfigurationError`` where the settings give none."""
        ...

    @property
    def bills_live(self) -> bool:
        """True where real customers are billed."""
        ...

    def former(self) -> Sequence[Provider]:
        """Providers that had usage before, and can still be asked."""
        ...

    def meters(self) -> list[ProviderMeter]:
        """The meters that usage is sent to."""
        ...


class HealthSources(Protocol):
    """The servers, stores and settings that are asked; a container has them all."""

    settings: Settings
    clock: Clock

    @property
    def endpoints(self) -> Endpoints: ...  # noqa: D102 - as the container's
    @property
    def engine(self) -> sa.Engine: ...  # noqa: D102 - as the container's
    @property
    def read_engine(self) -> sa.Engine: ...  # noqa: D102 - as the container's
    @property
    def redis(self) -> redis.Redis: ...  # noqa: D102 - as the container's
    @property
    def outbox(self) -> RedisOutbox: ...  # noqa: D102 - as the container's
    @property
    def quota(self) -> QuotaStore: ...  # noqa: D102 - as the container's
    @property
    def spool(self) -> Journal: ...  # noqa: D102 - as the container's
    @property
    def lease_wal(self) -> LeaseWal: ...  # noqa: D102 - as the container's

    @property
    def reporting(self) -> ReportingParts:
        """Reporting."""
        ...


# -- servers -----------------------------------------------------------------------------------


def round_trip(clock: Clock, ask_time: Callable[[], datetime]) -> tuple[float, float]:
    """Median round trip in milliseconds, and how far ahead the server's clock is, in seconds."""
    trips, skews = [], []
    for _ in range(_ROUND_TRIPS):
        began, before = time.perf_counter(), clock.now()
        theirs = ask_time()
        trips.append(time.perf_counter() - began)
        middle = before + (clock.now() - before) / 2
        skews.append((theirs - middle).total_seconds())
    return median(trips) * 1000, median(skews)


def missing_roles(connection: sa.Connection) -> tuple[set[str], bool]:
    """Roles of ours that are not there, and whether this login is a superuser."""
    names = set(connection.execute(sa.text("SELECT rolname FROM pg_roles")).scalars())
    own = sa.text("SELECT rolsuper FROM pg_roles WHERE rolname = session_user")
    return {OWNER_ROLE, WRITER_ROLE, READER_ROLE} - names, bool(connection.scalar(own))


def missing_partitions(connection: sa.Connection, now: datetime, ahead_months: int) -> list[str]:
    """Labels of the months from this one to ``ahead_months`` ahead without a partition."""
    there = {partition.name for partition in existing_partitions(connection)}
    month, missing = month_of(now), []
    for _ in range(ahead_months + 1):
        if partition_name(month.start) not in there:
            missing.append(month.label)
        month = next_month(month)
    return missing


def replica_lag(primary: sa.Engine, replica: sa.Engine) -> tuple[bool, int, float]:
    """Lag of the replica: it is one; bytes behind when given up; seconds until it was level."""
    began = time.monotonic()
    with primary.connect() as connection:
        written = connection.execute(sa.text("SELECT pg_current_wal_lsn()")).scalar_one()
    with replica.connect() as connection:
        while True:
            is_replica, behind = connection.execute(_BEHIND, {"written": written}).one()
            waited = time.monotonic() - began
            if not is_replica or behind <= 0 or waited > _REPLICA_PATIENCE_SECONDS:
                return bool(is_replica), max(int(behind or 0), 0), waited
            time.sleep(_REPLICA_POLL_SECONDS)


def redis_time(client: redis.Redis) -> datetime:
    """The clock of Redis."""
    seconds, microseconds = client.time()
    return EPOCH + timedelta(seconds=int(seconds), microseconds=int(microseconds))


def redis_persistence(client: redis.Redis, info: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``rules.persistence``, from Redis's configuration and its ``INFO``."""
    try:
        settings = cast("dict[str, str]", client.config_get("appendfsync", "save"))
    except redis.ResponseError:
        # Managed servers do not show their configuration.
        settings = {"appendfsync": "unknown", "save": "unknown"}
    written = (info["rdb_last_bgsave_status"], info["aof_last_write_status"])
    return {
        "append_only": bool(int(info["aof_enabled"])),
        "fsync": settings.get("appendfsync", "unknown"),
        "snapshots": settings.get("save", ""),
        "last_write_ok": written == ("ok", "ok"),
    }


def redis_place(url: str) -> str:
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


# -- usage on its way --------------------------------------------------------------------------


class OutboxFacts(NamedTuple):
    """Events RabbitMQ has not confirmed; ``oldest_seconds`` is None where there is none."""

    length: int
    oldest_seconds: float | None
    unreadable: int


def outbox_facts(sources: HealthSources) -> OutboxFacts:
    """The outbox, its ages by the clock of Redis.

    Raises:
        OutboxUnavailable, redis.RedisError: Redis did not answer.
    """
    now, oldest_ms = redis_time(sources.redis), sources.outbox.oldest_ms()
    age = None if oldest_ms is None else (now - from_ms(oldest_ms)).total_seconds()
    return OutboxFacts(sources.outbox.length(), age, sources.outbox.bad_length())


class HoldFacts(NamedTuple):
    """Open holds; ``locked_credits`` are those of the overdue ones, for people."""

    overdue: int
    open_holds: int
    locked_credits: str
    leases: int


def hold_facts(sources: HealthSources) -> HoldFacts:
    """Open holds, and those that outlived their time and a sweep by the clock of Redis."""
    holds = sources.quota.open_holds()
    latest = redis_time(sources.redis) - timedelta(seconds=HOLD_SWEEP_SECONDS)
    overdue = [hold for hold in holds if from_ms(hold.expires_at_ms) < latest]
    locked = format_credits(sum(hold.held_microcredits for hold in overdue))
    leases = sum(hold.task_id.startswith(LEASE_PREFIX) for hold in holds)
    return HoldFacts(len(overdue), len(holds), locked, leases)


def spool_facts(sources: HealthSources) -> tuple[int, float]:
    """Files in this node's spool, and the age of the oldest in seconds."""
    now, ages = sources.clock.now(), []
    for segment in sources.spool.segments():
        try:
            ages.append((now - from_ms(int(segment.stat().st_mtime * 1000))).total_seconds())
        except OSError:
            # Drained meanwhile.
            continue
    return len(ages), max(ages, default=0.0)


def leased_run_facts(sources: HealthSources) -> tuple[int, int]:
    """Files of leased runs that dead processes of this node left, and unreadable ones."""
    before = sources.clock.now() - timedelta(seconds=LEFT_SECONDS)
    return sources.lease_wal.abandoned_since(before), sources.lease_wal.unreadable()


# -- the log -----------------------------------------------------------------------------------


def open_dead_letters(sources: HealthSources) -> int:
    """Messages that could not be logged and were not replayed."""
    return sum(DeadLetters(sources.engine).counts().values())


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFacts:
    """The record of discrepancies, the seals and the archives.

    Attributes:
        open_by_kind: Discrepancies of the last balance check that are not put right.
        found_by_kind: All that were ever found.
        oldest_open_seconds: For how long the oldest open one has been known; None without one.
        unsealed_seconds: How long the oldest hour that is over waits for its seal; None: none does.
        newest_seal: Its number; None before the first.
        archives: Every archive.
    """

    open_by_kind: Mapping[DiscrepancyKind, int]
    found_by_kind: Mapping[DiscrepancyKind, int]
    oldest_open_seconds: float | None
    unsealed_seconds: float | None
    newest_seal: int | None
    archives: Sequence[Archive]


def log_facts(sources: HealthSources) -> LogFacts:
    """Gather ``LogFacts`` from PostgreSQL."""
    now, record = sources.clock.now(), DiscrepancyStore(sources.engine)
    with sources.engine.connect() as connection:
        unsealed, head = unsealed_since(connection, now), newest_seal(connection)
        found = archives(connection)
    oldest = record.oldest_open()
    return LogFacts(
        open_by_kind=record.open(),
        found_by_kind=record.ever(),
        oldest_open_seconds=None if oldest is None else (now - oldest).total_seconds(),
        unsealed_seconds=None if unsealed is None else (now - unsealed).total_seconds(),
        newest_seal=head.number if head else None,
        archives=found,
    )


def missing_archive_files(archives: Sequence[Archive], folder: Path) -> list[str]:
    """Names of archived months' files that are not in ``folder`` as they were written."""
    files = [each for one in archives if one.in_files for each in (one.rows_file, one.seals_file)]
    return [file.name for file in files if file and _size(folder / file.name) != file.size]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def stuck_archives(archives: Sequence[Archive], now: datetime) -> Iterator[str]:
    """Labels of the months whose archive was begun long ago and not ended."""
    for each in archives:
        if each.state in _UNFINISHED and each.begun_at < now - ARCHIVED_WITHIN:
            yield each.month.label
