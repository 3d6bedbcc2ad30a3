"""Restoring of an archived month: its rows and leaves return from the files, and are checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final

from sqlalchemy.engine import Connection, Engine

from billing.archive import catalog as archives
from billing.archive.archived_month import ArchivedMonth
from billing.archive.catalog import (
    Archive,
    ArchiveRefusedError,
    ArchiveState,
    archiving_lock,
)
from billing.audit.month_rows import LiveMonth
from billing.audit.sealer import write_leaves
from billing.audit.verifier import Verifier
from billing.core.errors import NotFound
from billing.core.failpoints import reach
from billing.core.periods import Period
from billing.core.row_hash import COLUMNS
from billing.postgres import partition_detaching as detaching
from billing.postgres.partitions import attach_table, make_table, partition_name

_COPY: Final = "COPY {table} ({columns}) FROM STDIN"
_DIMENSIONS: Final = COLUMNS.index("dimensions")
_SHOWN: Final = 3


class MonthRestorer:
    """Brings months back into the database.

    Args:
        engine: As the owner of the schema.
        folder: Of the files.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine = engine
        self._folder = folder

    def restore(self, month: Period, now: datetime, *, despite_findings: bool = False) -> Archive:
        """Make an archived month part of the log again: all of it in one transaction, or nothing.

        An archive that has not come to dropping its table is given up, wherever it stands. The
        files stay.

        Args:
            month: A UTC month.
            now: The present instant.
            despite_findings: Restore it as the file has it although that is not what was sealed.

        Raises:
            NotFound: It was never archived, or its files are not there.
            ArchiveRefusedError: The files are not what was sealed.
            ArchiveUnreadableError: They cannot be read.
            ArchivingBusyError: Another process is at it.
        """
        with archiving_lock(self._engine):
            archive = self._load(month)
            if archive.state is ArchiveState.RESTORED:
                return archive
            if archive.state is ArchiveState.DROPPED:
                self._restore(archive, now, despite_findings)
            else:
                self._give_up(archive, now)
            return self._load(month)

    def _load(self, month: Period) -> Archive:
        with self._engine.connect() as connection:
            archive = archives.archive_of(connection, month)
        if archive is None:
            raise NotFound("archive", month.label, "see: billing archive --list")
        return archive

    def _restore(self, archive: Archive, now: datetime, despite_findings: bool) -> None:
        month = archive.month
        files = ArchivedMonth(archive, self._folder, self._engine)
        with self._engine.begin() as connection:
            detaching.as_owner(connection)
            table = make_table(connection, month)
            _load_rows(connection, table, files)
            for _, _, leaves in files.seals():
                write_leaves(connection, leaves)
            reach("restore.after_load")
            self._check(connection, table, archive, now, despite_findings)
            attach_table(connection, table, month)
            archives.set_state(connection, month, ArchiveState.RESTORED, restored_at=now)
            reach("restore.before_commit")
        reach("restore.after_commit")

    def _check(
        self,
        connection: Connection,
        table: str,
        archive: Archive,
        now: datetime,
        despite_findings: bool,
    ) -> None:
        """Refuse rows that differ from the seals, before they are part of the log."""
        month = archive.month

        @contextmanager
        def this() -> Iterator[Connection]:
            yield connection

        rows = LiveMonth(month, this, table=table)
        found = list(islice(Verifier(self._engine, lambda _: rows).month(month, now), _SHOWN))
        if found and not despite_findings:
            named = "; ".join(f"{each.kind}: {each.words}" for each in found)
            raise ArchiveRefusedError(
                f"the files of {month.label} are not what was sealed ({named}); nothing was "
                "restored. Put a good copy of them back, or restore them as they are: "
                "--despite-findings"
            )

    def _give_up(self, archive: Archive, now: datetime) -> None:
        """Make the table, which still exists, the month's partition."""
        month = archive.month
        with self._engine.connect() as connection:
            attached = detaching.is_attached(connection, month)
        if not attached:
            # Finishes one that was only begun.
            detaching.detach(self._engine, month)
        with self._engine.begin() as connection:
            detaching.as_owner(connection)
            if not attached:
                attach_table(connection, partition_name(month.start), month)
            archives.set_state(connection, month, ArchiveState.RESTORED, restored_at=now)


def _load_rows(connection: Connection, table: str, files: ArchivedMonth) -> None:
    driver: Any = connection.connection.driver_connection
    command = _COPY.format(table=table, columns=", ".join(COLUMNS))
    with driver.cursor() as cursor, cursor.copy(command) as copy:
        for row in files.rows():
            values = [row[name] for name in COLUMNS]
            values[_DIMENSIONS] = json.dumps(row["dimensions"])
            copy.write_row(values)
