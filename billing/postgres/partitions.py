"""Partitions of the log: one per UTC month, made ahead of time, attached without a heavy lock.

A new partition is made as a table of its own with a CHECK that says its bounds, then attached: the
CHECK spares PostgreSQL the scan, and ATTACH then takes SHARE UPDATE EXCLUSIVE on the log, which
stops neither readers nor writers
(https://www.postgresql.org/docs/current/ddl-partitioning.html, "5.12.2.2"). There is no default
partition: it would have to be scanned under ACCESS EXCLUSIVE at every attach. A month that was
archived gets no new one: a repeated event of it would be taken for new.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.core.clock import from_ms
from billing.core.event_ids import lowest_id
from billing.core.periods import Period, month_of, next_month
from billing.postgres.locks import AdvisoryLock, lock
from billing.postgres.schema import OWNER_ROLE

PARENT: Final = "usage_events"
_NAME: Final = re.compile(rf"{PARENT}_(\d{{4}})_(\d{{2}})", re.ASCII)
_REFUSE: Final = "FOR EACH STATEMENT EXECUTE FUNCTION weighbridge_refuse_change()"

_EXISTING: Final = sa.text(
    """
    SELECT child.relname, pg_get_expr(child.relpartbound, child.oid)
    FROM pg_inherits
    JOIN pg_class child ON child.oid = pg_inherits.inhrelid
    WHERE pg_inherits.inhparent = to_regclass(:parent)
    ORDER BY child.relname
    """
)
_ARCHIVED: Final = sa.text(
    "SELECT month FROM log_archives WHERE state IN ('verified', 'detached', 'dropped')"
)
_OWN_CHECKS: Final = sa.text(
    """
    SELECT conname FROM pg_constraint WHERE contype = 'c' AND conrelid = to_regclass(:name)
        AND conname NOT IN (
            SELECT conname FROM pg_constraint
            WHERE contype = 'c' AND conrelid = to_regclass(:parent)
        )
    """
)


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition: the ids from ``lowest`` up to, and not including, ``end``."""

    name: str
    lowest: UUID
    end: UUID

    @property
    def month(self) -> Period:
        """The UTC month."""
        return month_of(from_ms(self.lowest.int >> 80))


def partition_name(month: datetime) -> str:
    """Name the partition of the UTC month that ``month`` falls in: ``usage_events_2026_11``."""
    return f"{PARENT}_{month.astimezone(UTC):%Y_%m}"


def is_partition_name(name: str) -> bool:
    """Whether a table of that name is a partition of the log."""
    return _NAME.fullmatch(name) is not None


def months_back(now: datetime, max_age: timedelta) -> int:
    """Count the months from an event of ``max_age`` to this one.

    Args:
        now: The present instant.
        max_age: The greatest age of an accepted event.
    """
    latest, oldest = now.astimezone(UTC), (now - max_age).astimezone(UTC)
    return (latest.year - oldest.year) * 12 + latest.month - oldest.month


def existing_partitions(connection: Connection) -> list[Partition]:
    """List the partitions, oldest first."""
    found = []
    for name, bound in connection.execute(_EXISTING, {"parent": PARENT}):
        lowest, end = re.findall(r"'([0-9a-f-]{36})'", bound)
        found.append(Partition(name, UUID(lowest), UUID(end)))
    return found


def ensure_partitions(
    connection: Connection,
    now: datetime,
    *,
    back_months: int = 3,
    ahead_months: int = 3,
    lock_timeout_ms: int = 5_000,
) -> list[str]:
    """Make the partitions that are missing around ``now``; to be committed by the caller.

    May run twice, or from several places at once: the second finds them made.

    Args:
        connection: In a transaction, of a login that is a member of the owner role.
        now: The present instant.
        back_months: Months before this one.
        ahead_months: Months after it.
        lock_timeout_ms: The longest wait for a lock; whoever queues for one holds up all behind.

    Returns:
        The names of those made, oldest first.
    """
    if back_months < 0 or ahead_months < 0:
        raise ValueError("back_months and ahead_months are zero or more")
    connection.execute(sa.text(f"SET LOCAL lock_timeout = {lock_timeout_ms:d}"))
    lock(connection, AdvisoryLock.PARTITIONS)
    before = connection.execute(sa.text("SELECT current_setting('role')")).scalar_one()
    connection.execute(sa.text(f"SET LOCAL ROLE {OWNER_ROLE}"))
    there = {partition.name for partition in existing_partitions(connection)}
    there |= _archived(connection)
    made = []
    for month in _months(now, back_months, ahead_months):
        name = partition_name(month.start)
        if name not in there:
            attach_table(connection, make_table(connection, month), month)
            made.append(name)
    connection.execute(sa.text("SELECT set_config('role', :role, true)"), {"role": before})
    return made


def _months(now: datetime, back: int, ahead: int) -> list[Period]:
    month = month_of(now)
    for _ in range(back):
        month = month_of(month.start - timedelta(days=1))
    months = [month]
    for _ in range(back + ahead):
        months.append(next_month(months[-1]))
    return months


def _archived(connection: Connection) -> set[str]:
    """The partitions that archived months had."""
    months = connection.execute(_ARCHIVED).scalars()
    return {f"{PARENT}_{month:%Y_%m}" for month in months}


def is_there(connection: Connection, name: str) -> bool:
    """Whether there is a table of that name."""
    found = connection.execute(sa.text("SELECT to_regclass(:name)"), {"name": name})
    return found.scalar_one() is not None


def make_table(connection: Connection, month: Period) -> str:
    """Make a month's table, not attached yet; returns its name.

    Args:
        connection: In a transaction, as the owner role.
        month: The UTC month.
    """
    name = partition_name(month.start)
    connection.execute(
        sa.text(f"CREATE TABLE {name} (LIKE {PARENT} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)")
    )
    return name


def attach_table(connection: Connection, name: str, month: Period) -> None:
    """Make a table, whose rows are all of a month, that month's partition.

    Args:
        connection: In a transaction, as the owner role.
        name: Of ``make_table``, or of a partition that was detached.
        month: The UTC month.
    """
    lowest, end = lowest_id(month.start), lowest_id(month.end)
    inside = f"id >= '{lowest}' AND id < '{end}'"
    # DETACH ... CONCURRENTLY leaves a check of its own behind.
    own = connection.execute(_OWN_CHECKS, {"name": name, "parent": PARENT}).scalars().all()
    # Names and bounds are made of digits by this module: there is nothing to quote.
    for statement in (
        f"ALTER TABLE {name} ADD CONSTRAINT {name}_bounds CHECK ({inside})",
        f"ALTER TABLE {PARENT} ATTACH PARTITION {name} FOR VALUES FROM ('{lowest}') TO ('{end}')",
        *(f'ALTER TABLE {name} DROP CONSTRAINT "{check}"' for check in (f"{name}_bounds", *own)),
        # Row triggers come from the log; a statement trigger is each table's own.
        f"CREATE OR REPLACE TRIGGER {name}_no_truncate BEFORE TRUNCATE ON {name} {_REFUSE}",
    ):
        connection.execute(sa.text(statement))
