"""The doctor's verdicts, pure: what was measured, what it means for money, and what to do."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

SLOW_MS: Final = 50.0
"""A reserve and a settle each cost one round trip; past this a task's billing is felt."""
SKEW_WARN_SECONDS: Final = 1.0
SKEW_FAIL_SECONDS: Final = 60.0
OUTBOX_WARN_SECONDS: Final = 60.0
"""The relay looks several times a second; an entry this old means that it is stuck or not there."""
OUTBOX_FAIL_SECONDS: Final = 3600.0
DEPTH_WARN: Final = 100_000
MINIMUM: Final = {"PostgreSQL": (15,), "Redis": (7,), "Valkey": (8,), "RabbitMQ": (3, 10)}
HOLD_SWEEP_SECONDS: Final = 90.0
"""A hold is overdue when it outlived its time by this: beat sweeps every 30 seconds."""

_NUMBER: Final = re.compile(r"\d+")


class Level(StrEnum):
    """How bad it is. ``fail`` means that money or work is at risk and ``doctor`` exits with 1."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthFinding:
    """One check. ``meaning`` (for money) and ``remedy`` are empty where all is well."""

    check: str
    level: Level
    found: str
    meaning: str = ""
    remedy: str = ""


def fine(check: str, found: str) -> HealthFinding:
    """Nothing to do."""
    return HealthFinding(check=check, level=Level.OK, found=found)


def unreachable(server: str, setting: str, error: str) -> HealthFinding:
    """A server that did not answer."""
    return HealthFinding(
        check=server,
        level=Level.FAIL,
        found=f"no answer: {error}",
        meaning=_AWAY[server],
        remedy=f"start it, or correct {setting}; for a laptop: billing local start",
    )


_AWAY: Final = {
    "PostgreSQL": "usage waits in the queue and is not lost; unknown balances admit nothing",
    "Redis": "tasks are retried, denied or run unheld, as their SKUs say; no usage is lost",
    "RabbitMQ": "usage waits in the outbox and is not lost; no task can be submitted",
}


def server(name: str, version: str, latency_ms: float) -> list[HealthFinding]:
    """A server that answered: is it new enough, and near enough?

    Args:
        name: One of ``MINIMUM``.
        version: As it says itself, such as ``15.14 (Debian 15.14-0)``.
        latency_ms: The median of a few round trips.
    """
    minimum = MINIMUM[name]
    numbers = tuple(int(each) for each in _NUMBER.findall(version.partition(" ")[0]))
    least = ".".join(map(str, minimum))
    found = f"{version}, {latency_ms:.1f} ms"
    if numbers < minimum:
        return [
            HealthFinding(
                check=name,
                level=Level.FAIL,
                found=found,
                meaning="not tested below this version; what is promised of money may not hold",
                remedy=f"upgrade it to {least} or newer",
            )
        ]
    if latency_ms > SLOW_MS:
        return [
            HealthFinding(
                check=name,
                level=Level.WARN,
                found=found,
                meaning="correct, but every task waits for it",
                remedy="put it nearer to the workers",
            )
        ]
    return [fine(name, found)]


def eviction(policy: str) -> HealthFinding:
    """Redis's ``maxmemory-policy``."""
    check = "Redis eviction"
    if policy == "noeviction":
        return fine(check, policy)
    return HealthFinding(
        check=check,
        level=Level.FAIL,
        found=f"maxmemory-policy={policy}",
        meaning="Redis may drop balances, holds and usage events on its own when memory is short",
        remedy="CONFIG SET maxmemory-policy noeviction, and the same in its configuration",
    )


def persistence(
    *, append_only: bool, fsync: str, snapshots: str, last_write_ok: bool
) -> HealthFinding:
    """What survives a restart of Redis.

    Args:
        append_only: Whether the append-only file is on.
        fsync: Its ``appendfsync``.
        snapshots: The ``save`` setting; empty without snapshots.
        last_write_ok: Whether the last attempt to persist succeeded.
    """
    check = "Redis persistence"
    if not last_write_ok:
        return HealthFinding(
            check=check,
            level=Level.FAIL,
            found="the last write to disk failed",
            meaning="a restart loses events that nodes did not keep in their journal",
            remedy="see Redis's log; free or mend its disk",
        )
    if append_only:
        return fine(check, f"append-only file, fsync {fsync}")
    found = f"snapshots ({snapshots})" if snapshots else "none"
    return HealthFinding(
        check=check,
        level=Level.WARN,
        found=found,
        meaning="after a crash balances are rebuilt from PostgreSQL, and events from the nodes' "
        "journals; a node lost at the same time loses its last minutes of usage",
        remedy="CONFIG SET appendonly yes, and the same in its configuration",
    )


def databases(quota: str, others: Collection[tuple[str, str]]) -> HealthFinding:
    """Whether balances share a Redis database with something that may be flushed.

    Args:
        quota: Server and database of the balances, such as ``127.0.0.1:6379/0``.
        others: Name and database of each other user of Redis.
    """
    check = "Redis database"
    shared = [name for name, place in others if place == quota]
    if not shared:
        return fine(check, f"{quota}, not shared")
    return HealthFinding(
        check=check,
        level=Level.FAIL,
        found=f"{quota} is also the {' and the '.join(shared)}",
        meaning="purging results or queues would take the balances and unsent usage with it",
        remedy="give REDIS_URL a database, or better a server, of its own",
    )


def schema(current: str | None, head: str) -> HealthFinding:
    """The database's migration against the newest there is."""
    check = "Schema"
    if current == head:
        return fine(check, f"at {head}")
    found = f"at {current}, newest {head}" if current else f"not migrated; newest {head}"
    return HealthFinding(
        check=check,
        level=Level.FAIL,
        found=found,
        meaning="workers refuse to start, and the consumer may not be able to write; usage waits",
        remedy="billing migrate",
    )


def partitions(missing: Sequence[str], ahead_months: int, *, this_month: str) -> HealthFinding:
    """Whether the log has somewhere to write to.

    Args:
        missing: Labels of months from this one to ``ahead_months`` ahead without a partition.
        ahead_months: How many months ahead there should be.
        this_month: The label of the present month.
    """
    check = "Partitions"
    if not missing:
        return fine(check, f"this month and {ahead_months} ahead")
    return HealthFinding(
        check=check,
        level=Level.FAIL if this_month in missing else Level.WARN,
        found=f"missing: {', '.join(missing)}",
        meaning="usage of a month without a partition waits as dead letters until there is one",
        remedy="billing migrate makes them; beat should do it every six hours",
    )


def roles(missing: Collection[str], *, superuser: bool) -> HealthFinding:
    """The roles that keep the log insert-only."""
    check = "Roles"
    if missing:
        return HealthFinding(
            check=check,
            level=Level.FAIL,
            found=f"missing: {', '.join(sorted(missing))}",
            meaning="the consumer cannot write the log",
            remedy="billing migrate",
        )
    if superuser:
        return HealthFinding(
            check=check,
            level=Level.WARN,
            found="owner, writer, reader; this login is a superuser",
            meaning="a superuser can rewrite the log; whoever has this password can",
            remedy="give workers and consumer a login that is a member of weighbridge_writer only",
        )
    return fine(check, "owner, writer, reader")


def queue(name: str, *, depth: int | None, consumers: int | None) -> HealthFinding:
    """The queue of usage events.

    Args:
        name: Its name.
        depth: Messages that are ready; None where there is no such queue.
        consumers: How many read it; None where the broker cannot say.
    """
    check = "Usage queue"
    if depth is None:
        return HealthFinding(
            check=check,
            level=Level.WARN,
            found=f"no queue {name!r}",
            meaning="nothing was published yet; relay and consumer declare it when they start",
            remedy="billing consumer",
        )
    found = f"{name}: {depth:,} waiting"
    found += "" if consumers is None else f", {consumers} consumer{'s' * (consumers != 1)}"
    if consumers == 0:
        return HealthFinding(
            check=check,
            level=Level.FAIL if depth else Level.WARN,
            found=found,
            meaning="usage is safe in the queue, but is in no receipt until a consumer writes it",
            remedy="billing consumer",
        )
    if depth > DEPTH_WARN:
        return HealthFinding(
            check=check,
            level=Level.WARN,
            found=found,
            meaning="receipts lag behind",
            remedy="start another billing consumer",
        )
    return fine(check, found)


def dead_letters(waiting: int, broker_waiting: int | None) -> HealthFinding:
    """What could not be billed.

    Args:
        waiting: Open dead letters in PostgreSQL.
        broker_waiting: Messages in RabbitMQ's own dead-letter queue; None where there is none.
    """
    check = "Dead letters"
    if not waiting and not broker_waiting:
        return fine(check, "none open")
    found = f"{waiting:,} open" + (f", {broker_waiting:,} in RabbitMQ" if broker_waiting else "")
    return HealthFinding(
        check=check,
        level=Level.WARN,
        found=found,
        meaning="each is usage that is not on any receipt, or a message that was none",
        remedy="billing dead list, mend the cause, billing dead replay",
    )


def outbox(length: int, oldest_seconds: float | None, unreadable: int) -> HealthFinding:
    """Events that RabbitMQ has not confirmed yet."""
    check = "Outbox"
    age = oldest_seconds or 0.0
    found = f"{length:,} waiting" + (f", oldest {age:,.0f} s" if length else "")
    if unreadable:
        return HealthFinding(
            check=check,
            level=Level.FAIL,
            found=f"{found}; {unreadable:,} unreadable, put aside",
            meaning="each of those is charged in Redis and in no receipt",
            remedy="see the streams …:out:bad and the relay's log; report it",
        )
    if age > OUTBOX_WARN_SECONDS:
        return HealthFinding(
            check=check,
            level=Level.FAIL if age > OUTBOX_FAIL_SECONDS else Level.WARN,
            found=found,
            meaning="charged already, not yet on its way to the log",
            remedy="is a worker or billing relay running, and does RabbitMQ take messages?",
        )
    return fine(check, found)


def overdue_holds(
    overdue: int, open_holds: int, locked_credits: str, *, leases: int = 0
) -> HealthFinding:
    """Holds that outlived their time and a sweep; ``leases`` of the open ones are processes'."""
    check = "Holds"
    if not overdue:
        leased = f" ({leases:,} leases)" if leases else ""
        return fine(check, f"{open_holds:,} open{leased}, none overdue")
    return HealthFinding(
        check=check,
        level=Level.WARN,
        found=f"{overdue:,} of {open_holds:,} open holds are overdue: {locked_credits} credits",
        meaning="these credits are locked away from their customers",
        remedy="is celery beat running? it expires holds every 30 seconds",
    )


def skew(server: str, seconds: float) -> HealthFinding:
    """A server's clock against this machine's; positive where the server is ahead."""
    check = f"Clock of {server}"
    found = f"{seconds:+.3f} s"
    if abs(seconds) < SKEW_WARN_SECONDS:
        return fine(check, found)
    return HealthFinding(
        check=check,
        level=Level.FAIL if abs(seconds) > SKEW_FAIL_SECONDS else Level.WARN,
        found=found,
        meaning="usage may be dated into the wrong hour; events too far ahead become dead letters",
        remedy="run an NTP client on both machines",
    )


def worst(findings: Collection[HealthFinding]) -> Level:
    """The worst level among them."""
    levels = {finding.level for finding in findings}
    return next((level for level in (Level.FAIL, Level.WARN) if level in levels), Level.OK)
