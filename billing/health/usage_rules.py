"""Rules for usage on its way and in the log: outbox, disk, dead letters, seals, archives. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

from billing.audit.sealer import LAG
from billing.health.finding import Check, HealthFinding, fail_if
from billing.reconciliation.invariants import DiscrepancyKind

OUTBOX_WARN_SECONDS: Final = 60.0
"""The relay looks several times a second; an entry this old means that it is stuck or not there."""
OUTBOX_FAIL_SECONDS: Final = 3600.0
HOLD_SWEEP_SECONDS: Final = 90.0
"""A hold is overdue when it outlived its time by this: beat sweeps every 30 seconds."""
SEALED_WITHIN_SECONDS: Final = (LAG + timedelta(hours=2)).total_seconds()
"""Beat seals every hour; past this it did not."""
ARCHIVED_WITHIN: Final = timedelta(days=1)
LEFT_SECONDS: Final = 60.0
"""A relay looks every second for what dead processes of its node left."""


def outbox(length: int, oldest_seconds: float | None, unreadable: int) -> HealthFinding:
    """Events that RabbitMQ has not confirmed yet."""
    check, age = Check("Outbox"), oldest_seconds or 0.0
    found = f"{length:,} waiting" + (f", oldest {age:,.0f} s" if length else "")
    if unreadable:
        return check.fail(
            f"{found}; {unreadable:,} unreadable, put aside",
            "each of those is charged in Redis and in no receipt",
            "see the streams …:out:bad and the relay's log; report it",
        )
    if age > OUTBOX_WARN_SECONDS:
        return check.warn(
            found,
            "charged already, not yet on its way to the log",
            "is a worker or billing relay running, and does RabbitMQ take messages?",
            level=fail_if(age > OUTBOX_FAIL_SECONDS),
        )
    return check.ok(found)


def overdue_holds(
    overdue: int, open_holds: int, locked_credits: str, *, leases: int = 0
) -> HealthFinding:
    """Holds that outlived their time and a sweep; ``leases`` of the open ones are processes'."""
    check = Check("Holds")
    if not overdue:
        leased = f" ({leases:,} leases)" if leases else ""
        return check.ok(f"{open_holds:,} open{leased}, none overdue")
    return check.warn(
        f"{overdue:,} of {open_holds:,} open holds are overdue: {locked_credits} credits",
        "these credits are locked away from their customers",
        "is celery beat running? it expires holds every 30 seconds",
    )


def dead_letters(waiting: int, broker_waiting: int | None) -> HealthFinding:
    """Messages that could not be billed.

    Args:
        waiting: Open dead letters in PostgreSQL.
        broker_waiting: Messages in RabbitMQ's own dead-letter queue; None where there is none.
    """
    check = Check("Dead letters")
    if not waiting and not broker_waiting:
        return check.ok("none open")
    return check.warn(
        f"{waiting:,} open" + (f", {broker_waiting:,} in RabbitMQ" if broker_waiting else ""),
        "each is usage that is not on any receipt, or a message that was none",
        "billing dead list, mend the cause, billing dead replay",
    )


def discrepancies(open_by_kind: Mapping[DiscrepancyKind, int]) -> HealthFinding:
    """Discrepancies of the last balance check that are not put right."""
    check = Check("Books")
    if not open_by_kind:
        return check.ok("no discrepancy is open")
    kinds = ", ".join(f"{count:,} {kind.value}" for kind, count in sorted(open_by_kind.items()))
    return check.warn(
        f"{sum(open_by_kind.values()):,} open: {kinds}",
        "Redis, rollups or outbox differ from the log: balances or bills may be wrong",
        "billing reconcile list, then billing reconcile --repair",
    )


def seals(newest: int | None, unsealed_seconds: float | None) -> HealthFinding:
    """Seals of the hours that are over.

    Args:
        newest: The newest seal's number; None before the first.
        unsealed_seconds: How long the oldest of what is to be sealed waits; None: nothing does.
    """
    check, waits = Check("Seals"), unsealed_seconds or 0.0
    found = "none yet" if newest is None else f"newest is {newest:,}"
    if waits <= SEALED_WITHIN_SECONDS:
        return check.ok(found)
    return check.warn(
        f"{found}; an hour waits for {waits / 3600:,.1f} h",
        "no money is at risk; there are no proofs of these lines, and no anchor has them",
        "is celery beat running, with a login of the owner? by hand: billing seals now",
    )


def archives(months: int, missing: Sequence[str], stuck: Sequence[str]) -> HealthFinding:
    """Files of archived months, where this process looks for them.

    Args:
        months: How many archives there are.
        missing: Names of files that are not here, or have another size.
        stuck: Months whose archive was begun long ago and not ended.
    """
    check = Check("Archives")
    if missing:
        return check.fail(
            f"{len(missing):,} not here as written: {', '.join(missing[:3])}",
            "nothing else has these rows: receipts of their months cannot be shown",
            "correct WEIGHBRIDGE_ARCHIVE_DIR, mount it here, or put a copy back",
        )
    if stuck:
        return check.warn(
            f"begun and not ended: {', '.join(stuck)}",
            "no money is at risk, and nothing is lost",
            f"go on: billing archive --month {stuck[0]}; give it up: billing restore",
        )
    return check.ok(f"{months:,} months" if months else "none")


def spool(segments: int, oldest_seconds: float) -> HealthFinding:
    """Usage that could be neither put into the outbox nor published when it was charged."""
    check = Check("Spool of this node")
    if not segments or oldest_seconds <= LEFT_SECONDS:
        return check.ok(f"{segments:,} files" if segments else "empty")
    return check.warn(
        f"{segments:,} files, oldest {oldest_seconds:,.0f} s",
        "this usage is on no receipt, and no balance has counted it",
        "a worker that relays, or billing relay --drain, on this node",
    )


def leased_runs(left: int, unreadable: int) -> HealthFinding:
    """Runs under leases that dead processes of this node left.

    Args:
        left: Files of dead processes that no relay has taken.
        unreadable: Files put aside because something in them cannot be read.
    """
    check = Check("Slips of this node")
    if not left and not unreadable:
        return check.ok("none left behind")
    found = [f"{left:,} files left by dead processes"] if left else []
    found += [f"{unreadable:,} unreadable, put aside"] if unreadable else []
    remedy = (
        "a relay on this node tells them: billing relay --drain"
        if left
        else "read the *.unreadable files, bill what is missing in the log, delete them"
    )
    return check.warn(
        "; ".join(found),
        "runs under a lease that are charged to nobody until they are told",
        remedy,
        level=fail_if(unreadable > 0),
    )
