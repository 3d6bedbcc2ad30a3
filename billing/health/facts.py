"""What the doctor says of the books, the log's seals, its archives, and this node's disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from billing.archive.catalog import Archive, ArchiveState
from billing.audit.sealer import LAG, unsealed_since
from billing.container import Container
from billing.core.clock import from_ms
from billing.health.rules import HealthFinding, Level, fine
from billing.reconciliation.discrepancies import DiscrepancyStore
from billing.reconciliation.invariants import DiscrepancyKind

SEALED_WITHIN_SECONDS: Final = (LAG + timedelta(hours=2)).total_seconds()
"""Beat seals every hour; past this it did not."""
ARCHIVED_WITHIN: Final = timedelta(days=1)
LEFT_SECONDS: Final = 60.0
"""A relay looks every second for what dead processes of its node left."""

_MOVING: Final = frozenset(
    {
        ArchiveState.EXPORTING,
        ArchiveState.EXPORTED,
        ArchiveState.VERIFIED,
        ArchiveState.DETACHED,
    }
)


def examine_keeping(container: Container, connection: sa.Connection) -> Iterator[HealthFinding]:
    """The books, the seals and the archives."""
    yield books(DiscrepancyStore(container.engine).open())
    since = unsealed_since(connection, container.clock.now())
    age = None if since is None else (container.clock.now() - since).total_seconds()
    head = container.audit.head()
    yield seals(head.number if head else None, age)
    found = container.audit.archives()
    stuck = [
        each.month.label
        for each in found
        if each.state in _MOVING and each.begun_at < container.clock.now() - ARCHIVED_WITHIN
    ]
    yield archives(len(found), _missing(found, container.settings.archive_dir), stuck)


def _missing(found: Sequence[Archive], folder: Path) -> list[str]:
    """Files of archived months that are not here as they were written, by their names."""
    files = [file for each in found if each.in_files for file in (each.rows_file, each.seals_file)]
    return [file.name for file in files if file and _size(folder / file.name) != file.size]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def examine_node(container: Container) -> Iterator[HealthFinding]:
    """What waits on this node's disk."""
    now = container.clock.now()
    ages = []
    for segment in container.spool.segments():
        try:
            ages.append((now - from_ms(int(segment.stat().st_mtime * 1000))).total_seconds())
        except OSError:
            # Drained meanwhile.
            continue
    yield spool(len(ages), max(ages, default=0.0))
    yield slips(
        container.lease_wal.left(now - timedelta(seconds=LEFT_SECONDS)),
        container.lease_wal.unreadable(),
    )


def books(open_by_kind: Mapping[DiscrepancyKind, int]) -> HealthFinding:
    """What the last check of the books found and is not put right."""
    check = "Books"
    if not open_by_kind:
        return fine(check, "no discrepancy is open")
    kinds = ", ".join(f"{count:,} {kind.value}" for kind, count in sorted(open_by_kind.items()))
    return HealthFinding(
        check=check,
        level=Level.WARN,
        found=f"{sum(open_by_kind.values()):,} open: {kinds}",
        meaning="Redis, rollups or outbox differ from the log: balances or bills may be wrong",
        remedy="billing reconcile list, then billing reconcile --repair",
    )


def seals(newest: int | None, unsealed_seconds: float | None) -> HealthFinding:
    """Whether hours that are over are sealed.

    Args:
        newest: The newest seal's number; None before the first.
        unsealed_seconds: How long the oldest of what is to be sealed waits; None: nothing does.
    """
    check = "Seals"
    found = "none yet" if newest is None else f"newest is {newest:,}"
    if (unsealed_seconds or 0.0) <= SEALED_WITHIN_SECONDS:
        return fine(check, found)
    return HealthFinding(
        check=check,
        level=Level.WARN,
        found=f"{found}; an hour waits for {(unsealed_seconds or 0.0) / 3600:,.1f} h",
        meaning="no money is at risk; there are no proofs of these lines, and no anchor has them",
        remedy="is celery beat running, with a login of the owner? by hand: billing seals now",
    )


def archives(months: int, missing: Sequence[str], stuck: Sequence[str]) -> HealthFinding:
    """Whether the files of archived months are where this process looks for them.

    Args:
        months: How many archives there are.
        missing: Names of files that are not here, or have another size.
        stuck: Months whose archive was begun long ago and not ended.
    """
    check = "Archives"
    if missing:
        return HealthFinding(
            check=check,
            level=Level.FAIL,
            found=f"{len(missing):,} not here as written: {', '.join(missing[:3])}",
            meaning="nothing else has these rows: receipts of their months cannot be shown",
            remedy="correct WEIGHBRIDGE_ARCHIVE_DIR, mount it here, or put a copy back",
        )
    if stuck:
        return HealthFinding(
            check=check,
            level=Level.WARN,
            found=f"begun and not ended: {', '.join(stuck)}",
            meaning="no money is at risk, and nothing is lost",
            remedy=f"go on: billing archive --month {stuck[0]}; give it up: billing restore",
        )
    return fine(check, f"{months:,} months" if months else "none")


def spool(segments: int, oldest_seconds: float) -> HealthFinding:
    """Usage that could be neither put into the outbox nor published when it was charged."""
    check = "Spool of this node"
    if not segments or oldest_seconds <= LEFT_SECONDS:
        return fine(check, f"{segments:,} files" if segments else "empty")
    return HealthFinding(
        check=check,
        level=Level.WARN,
        found=f"{segments:,} files, oldest {oldest_seconds:,.0f} s",
        meaning="this usage is on no receipt, and no balance has counted it",
        remedy="a worker that relays, or billing relay --drain, on this node",
    )


def slips(left: int, unreadable: int) -> HealthFinding:
    """Runs under leases that dead processes of this node left.

    Args:
        left: Files of dead processes that no relay has taken.
        unreadable: Files put aside because something in them cannot be read.
    """
    check = "Slips of this node"
    if not left and not unreadable:
        return fine(check, "none left behind")
    found = [f"{left:,} files left by dead processes"] if left else []
    found += [f"{unreadable:,} unreadable, put aside"] if unreadable else []
    return HealthFinding(
        check=check,
        level=Level.FAIL if unreadable else Level.WARN,
        found="; ".join(found),
        meaning="runs under a lease that are charged to nobody until they are told",
        remedy="a relay on this node tells them: billing relay --drain"
        if left
        else "read the *.unreadable files, bill what is missing in the log, delete them",
    )
