"""Detaching a partition from the log without blocking readers or writers."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from billing.core.periods import Period
from billing.postgres.partitions import PARENT, partition_name
from billing.postgres.schema import OWNER_ROLE

LOCK_SECONDS: Final = 60
"""The longest wait for transactions on the log; then it fails, and may be tried again."""

_PENDING: Final = sa.text(
    """
    SELECT inhdetachpending FROM pg_inherits
    WHERE inhparent = to_regclass(:parent) AND inhrelid = to_regclass(:name)
    """
)


def is_attached(connection: Connection, month: Period) -> bool:
    """Whether the month's table is part of the log, and not on its way out."""
    return _pending(connection, month) is False


def detach(engine: Engine, month: Period) -> None:
    """Make the month's partition a table of its own; nothing happens where it is one.

    ``DETACH ... CONCURRENTLY`` stops neither readers nor writers. It is two transactions: where a
    run was killed between them, the second is made up for.

    Args:
        engine: As the owner of the schema.
        month: The UTC month.

    Raises:
        sqlalchemy.exc.OperationalError: Somebody held a lock on the log for too long.
    """
    name = partition_name(month.start)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text(f"SET lock_timeout = '{LOCK_SECONDS}s'"))
        connection.execute(sa.text(f"SET ROLE {OWNER_ROLE}"))
        try:
            pending = _pending(connection, month)
            if pending is not None:
                how = "FINALIZE" if pending else "CONCURRENTLY"
                connection.execute(sa.text(f"ALTER TABLE {PARENT} DETACH PARTITION {name} {how}"))
        finally:
            # Nobody else is to get a connection with this role and this patience.
            connection.invalidate()


def as_owner(connection: Connection) -> None:
    """Take the owner role, and bounded waits, for the rest of a transaction."""
    connection.execute(sa.text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
    connection.execute(sa.text(f"SET LOCAL ROLE {OWNER_ROLE}"))


def _pending(connection: Connection, month: Period) -> bool | None:
    """Whether a detach was begun and not ended; None where the table is no partition."""
    names = {"parent": PARENT, "name": partition_name(month.start)}
    found: bool | None = connection.execute(_PENDING, names).scalar_one_or_none()
    return found
