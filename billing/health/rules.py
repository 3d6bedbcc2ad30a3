"""Rules for the servers: PostgreSQL, its replica, Redis, RabbitMQ. Pure; each threshold once."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Final

from billing.health.finding import Check, HealthFinding, fail_if
from billing.redis.cluster import Member

SLOW_MS: Final = 50.0
"""A reserve and a settle each cost one round trip; past this a task's billing is felt."""
SKEW_WARN_SECONDS: Final = 1.0
SKEW_FAIL_SECONDS: Final = 60.0
REPLICA_WARN_SECONDS: Final = 1.0
DEPTH_WARN: Final = 100_000
MINIMUM: Final = {"PostgreSQL": (15,), "Redis": (7,), "Valkey": (8,), "RabbitMQ": (3, 10)}

_NUMBER: Final = re.compile(r"\d+")
_AWAY: Final = {
    "PostgreSQL": "usage waits in the queue and is not lost; unknown balances admit nothing",
    "Redis": "tasks are retried, denied or run unheld, as their SKUs say; no usage is lost",
    "RabbitMQ": "usage waits in the outbox and is not lost; no task can be submitted",
}


def unreachable(name: str, setting: str, error: str) -> HealthFinding:
    """A server that did not answer."""
    return Check(name).fail(
        f"no answer: {error}",
        _AWAY[name],
        f"start it, or correct {setting}; for a laptop: billing local start",
    )


def server(name: str, version: str, latency_ms: float) -> HealthFinding:
    """Age and distance of a server that answered.

    Args:
        name: One of ``MINIMUM``.
        version: As it says itself, such as ``15.14 (Debian 15.14-0)``.
        latency_ms: The median of a few round trips.
    """
    check, found = Check(name), f"{version}, {latency_ms:.1f} ms"
    numbers = tuple(int(each) for each in _NUMBER.findall(version.partition(" ")[0]))
    if numbers < MINIMUM[name]:
        return check.fail(
            found,
            "not tested below this version; what is promised of money may not hold",
            f"upgrade it to {'.'.join(map(str, MINIMUM[name]))} or newer",
        )
    if latency_ms > SLOW_MS:
        return check.warn(
            found, "correct, but every task waits for it", "put it nearer to the workers"
        )
    return check.ok(found)


def skew(name: str, seconds: float) -> HealthFinding:
    """A server's clock against this machine's; positive where the server is ahead."""
    check, found = Check(f"Clock of {name}"), f"{seconds:+.3f} s"
    if abs(seconds) < SKEW_WARN_SECONDS:
        return check.ok(found)
    return check.warn(
        found,
        "usage may be dated into the wrong hour; events too far ahead become dead letters",
        "run an NTP client on both machines",
        level=fail_if(abs(seconds) > SKEW_FAIL_SECONDS),
    )


# -- PostgreSQL --------------------------------------------------------------------------------


def schema(current: str | None, head: str) -> HealthFinding:
    """The database's migration against the newest there is."""
    check = Check("Schema")
    if current == head:
        return check.ok(f"at {head}")
    return check.fail(
        f"at {current}, newest {head}" if current else f"not migrated; newest {head}",
        "workers refuse to start, and the consumer may not be able to write; usage waits",
        "billing migrate",
    )


def partitions(missing: Sequence[str], ahead_months: int, *, this_month: str) -> HealthFinding:
    """Room for the log's next rows.

    Args:
        missing: Labels of months from this one to ``ahead_months`` ahead without a partition.
        ahead_months: How many months ahead there should be.
        this_month: The label of the present month.
    """
    check = Check("Partitions")
    if not missing:
        return check.ok(f"this month and {ahead_months} ahead")
    return check.warn(
        f"missing: {', '.join(missing)}",
        "usage of a month without a partition waits as dead letters until there is one",
        "billing migrate makes them; beat should do it every six hours",
        level=fail_if(this_month in missing),
    )


def roles(missing: Collection[str], *, superuser: bool) -> HealthFinding:
    """The roles that keep the log insert-only."""
    check = Check("Roles")
    if missing:
        return check.fail(
            f"missing: {', '.join(sorted(missing))}",
            "the consumer cannot write the log",
            "billing migrate",
        )
    if superuser:
        return check.warn(
            "owner, writer, reader; this login is a superuser",
            "a superuser can rewrite the log; whoever has this password can",
            "give workers and consumer a login that is a member of weighbridge_writer only",
        )
    return check.ok("owner, writer, reader")


def replica(
    is_replica: bool | None, behind_bytes: int, behind_seconds: float, *, problem: str = ""
) -> HealthFinding:
    """Lag of the replica that answers questions about totals.

    Args:
        is_replica: Whether what answers is a replica; None where nothing answered.
        behind_bytes: Of the primary's log not repeated when it was given up waiting; 0: none.
        behind_seconds: How long it took to repeat what the primary had written.
        problem: Why nothing answered.
    """
    check = Check("Replica")
    if is_replica is None:
        return check.warn(
            f"no answer: {problem}",
            "no money is at risk; totals and receipts cannot be shown",
            "start it, correct WEIGHBRIDGE_DATABASE_READ_URL, or unset it",
        )
    if not is_replica:
        return check.warn(
            "the primary answers in its place",
            "no money is at risk; the primary has the replica's work as well",
            "start the replica, or correct WEIGHBRIDGE_DATABASE_READ_URL",
        )
    if behind_bytes <= 0 and behind_seconds <= REPLICA_WARN_SECONDS:
        return check.ok(f"{behind_seconds * 1000:.0f} ms behind")
    remedy = "see pg_stat_replication on the primary"
    found = f"{behind_seconds:.1f} s behind"
    if behind_bytes > 0:
        found = f"{behind_bytes:,} bytes behind after {behind_seconds:.1f} s"
        remedy += "; give the replica more disk"
    return check.warn(
        found, "totals and receipts are shown as of then, and say so; no money is at risk", remedy
    )


# -- Redis -------------------------------------------------------------------------------------


def eviction(policy: str) -> HealthFinding:
    """Redis's ``maxmemory-policy``."""
    check = Check("Redis eviction")
    if policy == "noeviction":
        return check.ok(policy)
    return check.fail(
        f"maxmemory-policy={policy}",
        "Redis may drop balances, holds and usage events on its own when memory is short",
        "CONFIG SET maxmemory-policy noeviction, and the same in its configuration",
    )


def cluster(members: Sequence[Member]) -> HealthFinding:
    """The nodes of a Redis Cluster."""
    check = Check("Redis Cluster")
    primaries = [each for each in members if each.primary_id is None and each.has_slots]
    followed = {each.primary_id for each in members if each.primary_id and not each.failing}
    down = [each.address for each in primaries if each.failing]
    alone = [each.address for each in primaries if each.id not in followed]
    if down:
        return check.fail(
            f"no answer from {', '.join(down)}",
            "customers of its shards cannot be admitted; their usage is in the journals",
            "wait for a replica to take over, or start the node",
        )
    if alone:
        return check.warn(
            f"{len(primaries)} primaries; none follows {', '.join(alone)}",
            "if that node dies, its shards are away until it is back; no event is lost",
            "add a replica: valkey-cli --cluster add-node … --cluster-slave",
        )
    return check.ok(f"{len(primaries)} primaries, each with a replica")


def persistence(
    *, append_only: bool, fsync: str, snapshots: str, last_write_ok: bool
) -> HealthFinding:
    """Survival of a restart of Redis.

    Args:
        append_only: Whether the append-only file is on.
        fsync: Its ``appendfsync``.
        snapshots: The ``save`` setting; empty without snapshots.
        last_write_ok: Whether the last attempt to persist succeeded.
    """
    check = Check("Redis persistence")
    if not last_write_ok:
        return check.fail(
            "the last write to disk failed",
            "a restart loses events that nodes did not keep in their journal",
            "see Redis's log; free or mend its disk",
        )
    if append_only:
        return check.ok(f"append-only file, fsync {fsync}")
    return check.warn(
        f"snapshots ({snapshots})" if snapshots else "none",
        "after a crash balances are rebuilt from PostgreSQL, and events from the nodes' "
        "journals; a node lost at the same time loses its last minutes of usage",
        "CONFIG SET appendonly yes, and the same in its configuration",
    )


def databases(quota: str, others: Collection[tuple[str, str]]) -> HealthFinding:
    """Balances that share a Redis database with something that may be flushed.

    Args:
        quota: Server and database of the balances, such as ``127.0.0.1:6379/0``.
        others: Name and database of each other user of Redis.
    """
    check = Check("Redis database")
    shared = [name for name, place in others if place == quota]
    if not shared:
        return check.ok(f"{quota}, not shared")
    return check.fail(
        f"{quota} is also the {' and the '.join(shared)}",
        "purging results or queues would take the balances and unsent usage with it",
        "give REDIS_URL a database, or better a server, of its own",
    )


# -- RabbitMQ ----------------------------------------------------------------------------------


def no_rabbitmq() -> HealthFinding:
    """Kombu's Redis transport in the place of RabbitMQ."""
    return Check("RabbitMQ").warn(
        "none; Kombu's Redis transport is in its place",
        "no confirms, no copies: a Redis that loses its data loses tasks and usage on its way",
        "set AMQP_URL; for a laptop this will do",
    )


def queue(name: str, *, depth: int | None, consumers: int | None) -> HealthFinding:
    """The queue of usage events.

    Args:
        name: Its name.
        depth: Messages that are ready; None where there is no such queue.
        consumers: How many read it; None where the broker cannot say.
    """
    check, remedy = Check("Usage queue"), "billing consumer"
    if depth is None:
        return check.warn(
            f"no queue {name!r}",
            "nothing was published yet; relay and consumer declare it when they start",
            remedy,
        )
    found = f"{name}: {depth:,} waiting"
    found += "" if consumers is None else f", {consumers} consumer{'s' * (consumers != 1)}"
    if consumers == 0:
        return check.warn(
            found,
            "usage is safe in the queue, but is in no receipt until a consumer writes it",
            remedy,
            level=fail_if(depth > 0),
        )
    if depth > DEPTH_WARN:
        return check.warn(found, "receipts lag behind", "start another billing consumer")
    return check.ok(found)
