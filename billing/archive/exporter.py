"""Archiving a month: seal, export, read back, detach, drop; and restoring it.

Each step is begun from the state that the step before has written down, and may be repeated: a
process that is killed anywhere leaves a month that the next run goes on with. The rows are in the
database until the files have been read back; the table is dropped in the transaction that counts
it once more. From ``verified`` on the month is read from its files, so no receipt has a gap.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from billing.archive import catalog as archives
from billing.archive.archived_month import ArchivedMonth, described
from billing.archive.catalog import (
    Archive,
    ArchiveFile,
    ArchiveRefusedError,
    ArchiveState,
    archiving_lock,
)
from billing.archive.parquet_files import (
    RowsFile,
    SealedLeaves,
    metadata_of,
    totals_in,
    write_seals,
)
from billing.audit.merkle import root_of
from billing.audit.month_rows import LiveMonth, MonthOfLog, rows_of, snapshots
from billing.audit.seal_chain import Leaves
from billing.audit.sealer import Sealer, newest_seal, read_seals, sealed_leaves
from billing.audit.verifier import Checked, Verifier
from billing.core.errors import InvalidValue, NotFound, WeighbridgeError
from billing.core.failpoints import reach
from billing.core.periods import Period
from billing.postgres import partition_detaching as detaching
from billing.postgres.partitions import existing_partitions, partition_name
from billing.usage_log.totals import Totals, totals_of

MARGIN: Final = timedelta(days=1)
"""Wait this long after the last event of a month could arrive."""

_SHOWN: Final = 3
_IN_ORDER: Final = 'customer_id COLLATE "C", '
_TOTALS: Final = """
    SELECT count(*), sum(quantity), sum(amount_microcredits), sum(shortfall_microcredits),
        sum(cost_micros)
    FROM {table}
"""
_DROP_LEAVES: Final = sa.text(
    """
    DELETE FROM log_seal_leaves WHERE number IN (
        SELECT number FROM log_seals WHERE hour >= :start AND hour < :end
    )
    """
)
_WAITING: Final = sa.text(
    "SELECT coalesce(sum(rows), 0) FROM log_manifests WHERE hour >= :start AND hour < :end"
)


@dataclass(slots=True)
class Progress:
    """The step under way and its rows so far, for whoever shows it."""

    step: str = ""
    rows: int = 0
    checked: Checked = field(default_factory=Checked)


class MonthExporter:
    """Moves months from the database to files.

    Args:
        engine: As the owner of the schema.
        folder: Of the files.
        sealer: Seals the rest of a month first.
        max_age: The greatest age at which an event is logged.
        progress: Kept up to date.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        *,
        sealer: Sealer,
        max_age: timedelta,
        progress: Progress | None = None,
    ) -> None:
        self._engine = engine
        self._folder = folder
        self._sealer = sealer
        self._max_age = max_age
        self.progress = progress or Progress()

    def due(self, before: Period) -> list[Period]:
        """List the months before ``before`` that are in the database, or half-way out of it.

        A month that was restored is left alone: somebody wanted it back.
        """
        with self._engine.connect() as connection:
            known = {archive.month.start: archive for archive in archives.archives(connection)}
            there = {p.month.start: p.month for p in existing_partitions(connection)}
        months = {start: archive.month for start, archive in known.items()} | there
        settled = (ArchiveState.DROPPED, ArchiveState.RESTORED)
        return [
            months[start]
            for start in sorted(months)
            if start < before.start and not (start in known and known[start].state in settled)
        ]

    def check_age(self, month: Period, now: datetime) -> None:
        """Refuse a month of which events may still arrive.

        Raises:
            InvalidValue: It is too young.
        """
        free = month.end + self._max_age + MARGIN
        if now < free:
            raise InvalidValue(
                "month",
                month.label,
                f"usage of it may still arrive (WEIGHBRIDGE_EVENT_MAX_AGE_DAYS is "
                f"{self._max_age.days}); archive it from {free:%Y-%m-%d} on",
            )

    def archive(self, month: Period, now: datetime, *, despite_findings: bool = False) -> Archive:
        """Take a month out of the database, from wherever the last run of this ended.

        Args:
            month: A UTC month.
            now: The present instant.
            despite_findings: Archive it as it is although ``billing verify`` finds something.

        Raises:
            InvalidValue: It is too young.
            NotFound: It is not in the database.
            ArchiveRefusedError: It is not what was sealed, or its files are not what it is.
            ArchivingBusyError: Another process is at it.
        """
        self.check_age(month, now)
        with archiving_lock(self._engine):
            while True:
                archive = self._load(month)
                state = archive.state if archive else None
                if archive is not None and state is ArchiveState.DROPPED:
                    return archive
                if archive is None or state is ArchiveState.RESTORED:
                    self._begin(month, now, despite_findings)
                elif state is ArchiveState.EXPORTING:
                    self._export(archive, ArchiveState.EXPORTED)
                elif state is ArchiveState.EXPORTED:
                    self._read_back(archive, now, ArchiveState.VERIFIED, despite_findings)
                elif state is ArchiveState.VERIFIED:
                    self._detach(archive)
                else:
                    self._drop(archive, now, despite_findings)

    # -- the steps -----------------------------------------------------------------------------

    def _begin(self, month: Period, now: datetime, despite_findings: bool) -> None:
        self.progress.step, self.progress.rows = "sealing", 0
        with self._engine.connect() as connection:
            if not detaching.is_attached(connection, month):
                raise NotFound("partition", partition_name(month.start), "see: billing archive")
        self._sealer.seal(now)
        with self._engine.connect() as connection:
            waiting = connection.execute(_WAITING, {"start": month.start, "end": month.end})
            if waiting.scalar_one():
                raise ArchiveRefusedError(f"{month.label} was not sealed; run it again")
        self._check(LiveMonth(month, snapshots(self._engine)), now, despite_findings)
        with self._engine.begin() as connection:
            archives.begin(connection, month, now)
        reach("archive.after_begin")

    def _export(self, archive: Archive, then: ArchiveState) -> None:
        month = archive.month
        self._folder.mkdir(parents=True, exist_ok=True)
        name = partition_name(month.start)
        rows, seals = self._folder / f"{name}.parquet", self._folder / f"{name}.seals.parquet"
        with snapshots(self._engine)() as connection:
            head = newest_seal(connection)
            hashes = [kept for _, kept in read_seals(connection, period=month)]
            known = {
                "month": month.label,
                "seals": str(len(hashes)),
                "seals_root": root_of(hashes).hex(),
                "head": f"{head.number} {head.hash.hex()}" if head else "",
            }
            with _replacing(seals) as part:
                write_seals(part, _sealed(connection, month), known)
            with _replacing(rows) as part:
                totals = self._write_rows(connection, month, part, known)
                reach("archive.after_rows")
        reach("archive.after_rename")
        with self._engine.begin() as connection:
            archives.set_state(
                connection,
                month,
                then,
                **_file_values("file", "file", described(rows)),
                **_file_values("seals_file", "seals", described(seals)),
                **_totals_values(totals),
                seals_root=root_of(hashes),
                head_number=head.number if head else None,
                head_hash=head.hash if head else None,
            )
        reach("archive.after_export")

    def _write_rows(
        self, connection: Connection, month: Period, path: Path, known: dict[str, str]
    ) -> Totals:
        table = partition_name(month.start)
        totals = _totals_of_table(connection, table)
        with RowsFile(path) as file:
            self.progress.step = "exporting"
            rows = rows_of(connection, month, table=table, order=_IN_ORDER)
            for number, row in enumerate(rows, 1):
                file.write(row)
                self.progress.rows = number
            sums = asdict(totals)
            file.finish({**known, "rows": str(sums.pop("events")), "sums": json.dumps(sums)})
        return totals

    def _read_back(
        self, archive: Archive, now: datetime, then: ArchiveState, despite_findings: bool
    ) -> None:
        self.progress.step, self.progress.rows = "reading back", 0
        try:
            self._check_files(archive)
            files = ArchivedMonth(archive, self._folder, self._engine)
            self._check(files, now, despite_findings)
        except WeighbridgeError:
            if archive.state is ArchiveState.EXPORTED:
                # The next run writes them anew.
                with self._engine.begin() as connection:
                    archives.set_state(connection, archive.month, ArchiveState.EXPORTING)
            raise
        with self._engine.begin() as connection:
            archives.set_state(connection, archive.month, then, verified_at=now)
        reach("archive.after_verify")

    def _check_files(self, archive: Archive) -> None:
        """Counts, sums and metadata of the files against the table."""
        month = archive.month
        for fault in ArchivedMonth(archive, self._folder, self._engine).faults():
            raise ArchiveRefusedError(f"{month.label}: {fault}; run it again")
        path = self._path(archive.rows_file)
        with self._engine.connect() as connection:
            in_table = _totals_of_table(connection, partition_name(month.start))
        in_file = totals_in(path)
        if not in_file == in_table == archive.totals:
            raise ArchiveRefusedError(
                f"{month.label}: the file adds up to {in_file}, the table to {in_table}; the table "
                "was kept; run it again"
            )
        metadata = metadata_of(path)
        root = archive.seals_root or b""
        if (metadata["month"], metadata["seals_root"]) != (month.label, root.hex()):
            raise ArchiveRefusedError(f"{month.label}: {path.name} says it is another month's")

    def _detach(self, archive: Archive) -> None:
        self.progress.step, self.progress.rows = "detaching", 0
        detaching.detach(self._engine, archive.month)
        reach("archive.before_detached")
        with self._engine.begin() as connection:
            archives.set_state(connection, archive.month, ArchiveState.DETACHED)
        reach("archive.after_detached")

    def _drop(self, archive: Archive, now: datetime, despite_findings: bool) -> None:
        self.progress.step, self.progress.rows = "dropping", 0
        month = archive.month
        if list(ArchivedMonth(archive, self._folder, self._engine).faults()):
            # Lost or damaged since they were read back; the table still has everything.
            self._export(archive, ArchiveState.DETACHED)
            archive = self._load(month) or archive
            self._read_back(archive, now, ArchiveState.DETACHED, despite_findings)
        name = partition_name(month.start)
        with self._engine.begin() as connection:
            detaching.as_owner(connection)
            connection.execute(sa.text(f"LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE"))
            left = _totals_of_table(connection, name)
            if left != archive.totals:
                raise ArchiveRefusedError(
                    f"{month.label}: the table adds up to {left}, its archive to {archive.totals}; "
                    f"the table was kept. Look at it (billing restore {month.label} makes it part "
                    "of the log again), then archive anew"
                )
            connection.execute(sa.text(f"DROP TABLE {name}"))
            connection.execute(_DROP_LEAVES, {"start": month.start, "end": month.end})
            archives.set_state(connection, month, ArchiveState.DROPPED, dropped_at=now)
            reach("archive.before_drop")
        reach("archive.after_drop")

    # -- shared by the steps -----------------------------------------------------------------------

    def _check(self, rows: MonthOfLog, now: datetime, despite_findings: bool) -> None:
        """Refuse a month that differs from its seals, wherever it is read."""
        verifier = Verifier(self._engine, lambda _: rows)
        self.progress.checked = Checked()
        found = list(islice(verifier.month(rows.period, now, self.progress.checked), _SHOWN))
        if found and not despite_findings:
            named = "; ".join(f"{each.kind}: {each.words}" for each in found)
            raise ArchiveRefusedError(
                f"{rows.period.label} is not what was sealed ({named}): see billing verify --month "
                f"{rows.period.label}. To archive it as it is: --despite-findings"
            )

    def _load(self, month: Period) -> Archive | None:
        with self._engine.connect() as connection:
            return archives.archive_of(connection, month)

    def _path(self, file: ArchiveFile | None) -> Path:
        return self._folder / (file.name if file else "")


def _sealed(connection: Connection, month: Period) -> Iterator[SealedLeaves]:
    """The month's seals with their leaves, by hour and number."""
    seals = sorted(
        read_seals(connection, period=month), key=lambda each: (each[0].hour, each[0].number)
    )
    for seal, kept in seals:
        found = sealed_leaves(connection, [seal.number])
        yield seal, kept, found[0] if found else Leaves(seal.number, b"", b"")


def _totals_of_table(connection: Connection, table: str) -> Totals:
    # The name is made of digits by billing.postgres.partitions.
    return totals_of(connection.execute(sa.text(_TOTALS.format(table=table))).one())


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file to write to; it takes the place of ``path`` when it is complete and on the disk."""
    part = path.with_name(f".{path.name}.part")
    yield part
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _file_values(name: str, prefix: str, file: ArchiveFile) -> dict[str, object]:
    return {name: file.name, f"{prefix}_bytes": file.size, f"{prefix}_sha256": file.sha256}


def _totals_values(totals: Totals) -> dict[str, object]:
    values = asdict(totals)
    return {"rows": values.pop("events"), **values}
