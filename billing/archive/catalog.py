"""The table of archives: months that left the database, and how far each has come."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from billing.core.errors import WeighbridgeError
from billing.core.periods import Period, month_of
from billing.postgres.locks import AdvisoryLock, session_lock
from billing.postgres.schema import log_archives
from billing.usage_log.totals import Totals


class ArchiveState(StrEnum):
    """The states of an archive; each step begins from the state before it."""

    EXPORTING = "exporting"
    """Its files are being written."""
    EXPORTED = "exported"
    """They are complete, and not read back yet."""
    VERIFIED = "verified"
    """They agree with the seals; from here on the month is read from them."""
    DETACHED = "detached"
    """The partition is a table of its own."""
    DROPPED = "dropped"
    """That table is gone."""
    RESTORED = "restored"
    """The month is in the database again, or has never left it; complete files are still there."""


class ArchivingBusyError(WeighbridgeError):
    """Another process is archiving or restoring at this moment. Nothing was done here."""


class ArchiveRefusedError(WeighbridgeError):
    """A month cannot be archived or restored as things are; nothing of it was lost."""


_IN_FILES: Final = (ArchiveState.VERIFIED, ArchiveState.DETACHED, ArchiveState.DROPPED)


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """One file: its name without a folder, its size in bytes, its SHA-256."""

    name: str
    size: int
    sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """One month's archive.

    Attributes:
        month: The UTC month.
        state: The step it has reached.
        rows_file: The rows; None before they are exported, as all the rest.
        seals_file: The month's seals with their leaves.
        totals: Sums of the rows, ``events`` being their number.
        seals_root: Merkle root over the hashes of the month's seals, by number.
        head_number: The newest seal of all at the time of the export.
        head_hash: Its hash.
        begun_at: The instant of its beginning.
        verified_at: The instant when its files had been read back.
        dropped_at: The instant when its table was dropped.
        restored_at: The instant when it was last restored.
    """

    month: Period
    state: ArchiveState
    rows_file: ArchiveFile | None = None
    seals_file: ArchiveFile | None = None
    totals: Totals | None = None
    seals_root: bytes | None = None
    head_number: int | None = None
    head_hash: bytes | None = None
    begun_at: datetime
    verified_at: datetime | None = None
    dropped_at: datetime | None = None
    restored_at: datetime | None = None

    @property
    def in_files(self) -> bool:
        """Whether the month is read from its files."""
        return self.state in _IN_FILES


def archives(connection: Connection) -> list[Archive]:
    """Read every archive, oldest month first."""
    query = sa.select(log_archives).order_by(log_archives.c.month)
    return [_archive(row) for row in connection.execute(query).mappings()]


def archive_of(connection: Connection, month: Period) -> Archive | None:
    """Read the archive of a UTC month."""
    query = sa.select(log_archives).where(log_archives.c.month == month.start.date())
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _archive(row)


def begin(connection: Connection, month: Period, now: datetime) -> None:
    """Begin a month's archive, or begin it again after it was restored."""
    connection.execute(
        sa.text(
            """
            INSERT INTO log_archives (month, state, begun_at) VALUES (:month, 'exporting', :now)
            ON CONFLICT (month) DO UPDATE SET state = 'exporting', begun_at = excluded.begun_at
            """
        ),
        {"month": month.start.date(), "now": now},
    )


def set_state(connection: Connection, month: Period, state: ArchiveState, **values: object) -> None:
    """Record the step that a month has reached.

    Args:
        connection: In a transaction, in which the step was done.
        month: The archive's month.
        state: The new state.
        **values: Columns of ``log_archives`` that change with it.
    """
    connection.execute(
        sa.update(log_archives)
        .where(log_archives.c.month == month.start.date())
        .values(state=state.value, **values)
    )


@contextmanager
def archiving_lock(engine: Engine) -> Iterator[None]:
    """Exclude every other process that archives or restores, while the block runs.

    Raises:
        ArchivingBusyError: There is one.
    """
    with session_lock(engine, AdvisoryLock.ARCHIVING) as held:
        if not held:
            raise ArchivingBusyError
        yield


def month_starting(day: date) -> Period:
    """Compute the UTC month of a date."""
    return month_of(datetime(day.year, day.month, 1, tzinfo=UTC))


def _archive(row: sa.RowMapping) -> Archive:
    return Archive(
        month=month_starting(row["month"]),
        state=ArchiveState(row["state"]),
        rows_file=_file(row, "file"),
        seals_file=_file(row, "seals_file", "seals"),
        totals=_totals(row),
        seals_root=_bytes(row["seals_root"]),
        head_number=row["head_number"],
        head_hash=_bytes(row["head_hash"]),
        begun_at=row["begun_at"],
        verified_at=row["verified_at"],
        dropped_at=row["dropped_at"],
        restored_at=row["restored_at"],
    )


def _file(row: sa.RowMapping, name: str, prefix: str = "file") -> ArchiveFile | None:
    if row[name] is None:
        return None
    return ArchiveFile(row[name], row[f"{prefix}_bytes"], bytes(row[f"{prefix}_sha256"]))


def _totals(row: sa.RowMapping) -> Totals | None:
    if row["rows"] is None:
        return None
    names = ("quantity", "amount_microcredits", "shortfall_microcredits", "cost_micros")
    return Totals(row["rows"], *(int(row[name]) for name in names))


def _bytes(value: Any) -> bytes | None:  # noqa: ANN401 - bytea, as the driver gives it
    return None if value is None else bytes(value)
