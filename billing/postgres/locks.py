"""Every advisory lock of Weighbridge, by name.

The numbers never change: processes of two releases run side by side while one replaces the other,
and have to exclude each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Final

import psycopg
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

PATIENCE_MS: Final = 2_000


class AdvisoryLock(IntEnum):
    """A task of which one runs at a time in a database."""

    MIGRATION = 0x57656967_6D696772
    PARTITIONS = 0x57656967_70617274
    SEALING = 0x57656967_7365616C
    ARCHIVING = 0x57656967_61726368
    """Archiving and restoring months."""
    REPAIR = 0x57656967_72657061
    REPORT_PLANNING = 0x57656967_72657074


class AdvisoryLockClass(IntEnum):
    """A task of which one runs at a time for each name; the first half of the lock's key."""

    ACCOUNT_LOADING = 0x77B
    """By customer."""
    TOPUP = 0x77C
    """By the reference of a payment."""


_WAIT: Final = sa.text("SELECT pg_advisory_xact_lock(:key)")
_TRY: Final = sa.text("SELECT pg_try_advisory_xact_lock(:key)")
_WAIT_FOR_NAME: Final = sa.text("SELECT pg_advisory_xact_lock(:class, hashtext(:name))")
_WAIT_IN_SESSION: Final = sa.text("SELECT pg_advisory_lock(:key)")
_RELEASE: Final = sa.text("SELECT pg_advisory_unlock(:key)")


def lock(connection: Connection, key: AdvisoryLock) -> None:
    """Wait for a lock and hold it until the transaction ends."""
    connection.execute(_WAIT, {"key": key.value})


def try_lock(connection: Connection, key: AdvisoryLock) -> bool:
    """Take a lock until the transaction ends, if it is free at this moment."""
    return bool(connection.execute(_TRY, {"key": key.value}).scalar_one())


def lock_name(connection: Connection, lock_class: AdvisoryLockClass, name: str) -> None:
    """Wait for the lock of a name and hold it until the transaction ends."""
    connection.execute(_WAIT_FOR_NAME, {"class": lock_class.value, "name": name})


@contextmanager
def session_lock(
    engine: Engine, key: AdvisoryLock, *, patience_ms: int = PATIENCE_MS
) -> Iterator[bool]:
    """Hold a lock while the block runs, over many transactions; yields whether it was had.

    Args:
        engine: Any; one connection of it is kept busy.
        key: The lock.
        patience_ms: The longest wait for it; at least 1. The lock of a process that was killed is
            free when PostgreSQL notices, a moment later.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        held = _take(connection, key, patience_ms)
        try:
            yield held
        finally:
            if held:
                _give_back(connection, key)


def _take(connection: Connection, key: AdvisoryLock, patience_ms: int) -> bool:
    connection.execute(sa.text(f"SET lock_timeout = {patience_ms:d}"))
    try:
        connection.execute(_WAIT_IN_SESSION, {"key": key.value})
    except sa.exc.OperationalError as error:
        if not isinstance(error.orig, psycopg.errors.LockNotAvailable):
            raise
        return False
    finally:
        connection.execute(sa.text("RESET lock_timeout"))
    return True


def _give_back(connection: Connection, key: AdvisoryLock) -> None:
    try:
        connection.execute(_RELEASE, {"key": key.value})
    except sa.exc.SQLAlchemyError:
        # The connection is gone, and the lock with it.
        connection.invalidate()
