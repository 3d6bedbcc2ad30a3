"""What the doctor asks the replica that answers questions: is it one, and how far behind is it?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

import sqlalchemy as sa

from billing.container import Container
from billing.health.rules import HealthFinding, Level, fine

_CHECK: Final = "Replica"
WARN_SECONDS: Final = 1.0
_PATIENCE_SECONDS: Final = 3.0
_POLL_SECONDS: Final = 0.02
_BEHIND: Final = sa.text(
    "SELECT pg_is_in_recovery(), "
    "pg_wal_lsn_diff(CAST(:written AS pg_lsn), pg_last_wal_replay_lsn())"
)


def examine_replica(container: Container) -> Iterator[HealthFinding]:
    """One finding where a replica is configured; none where there is none."""
    if container.settings.database_read_url is None:
        return
    try:
        yield _lag(container)
    except sa.exc.DBAPIError as error:
        yield verdict(None, 0, 0, problem=str(error.orig).strip().partition("\n")[0])


def verdict(
    is_replica: bool | None, behind_bytes: int, behind_seconds: float, *, problem: str = ""
) -> HealthFinding:
    """What it means; pure.

    Args:
        is_replica: Whether what answers is a replica; None where nothing answered.
        behind_bytes: Of the primary's log not repeated when it was given up waiting; 0: none.
        behind_seconds: How long it took to repeat what the primary had written.
        problem: Why nothing answered.
    """
    if is_replica is None:
        return HealthFinding(
            check=_CHECK,
            level=Level.WARN,
            found=f"no answer: {problem}",
            meaning="no money is at risk; totals and receipts cannot be shown",
            remedy="start it, correct WEIGHBRIDGE_DATABASE_READ_URL, or unset it",
        )
    if not is_replica:
        return HealthFinding(
            check=_CHECK,
            level=Level.WARN,
            found="the primary answers in its place",
            meaning="no money is at risk; the primary has the replica's work as well",
            remedy="start the replica, or correct WEIGHBRIDGE_DATABASE_READ_URL",
        )
    if behind_bytes > 0:
        return HealthFinding(
            check=_CHECK,
            level=Level.WARN,
            found=f"{behind_bytes:,} bytes behind after {behind_seconds:.1f} s",
            meaning="totals and receipts are shown as of then, and say so; no money is at risk",
            remedy="see pg_stat_replication on the primary; give the replica more disk",
        )
    if behind_seconds > WARN_SECONDS:
        return HealthFinding(
            check=_CHECK,
            level=Level.WARN,
            found=f"{behind_seconds:.1f} s behind",
            meaning="totals and receipts are shown as of then, and say so; no money is at risk",
            remedy="see pg_stat_replication on the primary",
        )
    return fine(_CHECK, f"{behind_seconds * 1000:.0f} ms behind")


def _lag(container: Container) -> HealthFinding:
    """How long the replica takes to repeat what the primary has written by now."""
    began = time.monotonic()
    with container.engine.connect() as connection:
        written = connection.execute(sa.text("SELECT pg_current_wal_lsn()")).scalar_one()
    with container.read_engine.connect() as connection:
        while True:
            replica, behind = connection.execute(_BEHIND, {"written": written}).one()
            waited = time.monotonic() - began
            if not replica or behind <= 0 or waited > _PATIENCE_SECONDS:
                return verdict(replica, max(int(behind or 0), 0), waited)
            time.sleep(_POLL_SECONDS)
