"""The log's seals and archives: sealing, verifying, proving, archiving, restoring."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import sqlalchemy as sa

from billing.archive.archive_reader import ArchiveReader
from billing.archive.catalog import Archive, archive_of, archives
from billing.audit.backfill_seals import backfill_seals
from billing.audit.month_rows import LiveMonth, MonthOfLog, snapshots
from billing.audit.proofs import Prover
from billing.audit.seal_chain import Seal
from billing.audit.sealer import Sealer, SealingResult, newest_seal, read_seals
from billing.audit.verifier import Verifier
from billing.core.errors import ConfigurationError
from billing.core.periods import Period
from billing.postgres.partitions import existing_partitions
from billing.settings import Settings
from billing.usage_log.archived_usage import ArchivedUsage

if TYPE_CHECKING:
    from billing.archive.archived_month import ArchivedMonth
    from billing.archive.exporter import MonthExporter
    from billing.archive.restorer import MonthRestorer


class ArchiveClasses(NamedTuple):
    """The classes that read and write archives."""

    month: type[ArchivedMonth]
    exporter: type[MonthExporter]
    restorer: type[MonthRestorer]


def load_archive_classes() -> ArchiveClasses:
    """Import what needs pyarrow: 60 MB and a sixth of a second, for archives only.

    Raises:
        ConfigurationError: pyarrow is not installed.
    """
    try:
        from billing.archive.archived_month import ArchivedMonth  # noqa: PLC0415 - as said above
        from billing.archive.exporter import MonthExporter  # noqa: PLC0415
        from billing.archive.restorer import MonthRestorer  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pyarrow":
            raise
        raise ConfigurationError(
            "archive", "pyarrow is not installed", 'install it: pip install "weighbridge[archive]"'
        ) from error
    return ArchiveClasses(ArchivedMonth, MonthExporter, MonthRestorer)


class AuditServices:
    """The log's seals and archives. Nothing connects before it is used.

    Args:
        settings: The folder of archives, and how old an event may be.
        engine: PostgreSQL, as the owner role.
    """

    def __init__(self, settings: Settings, engine: sa.Engine) -> None:
        self._settings = settings
        self._engine = engine

    @cached_property
    def sealer(self) -> Sealer:
        """Sealer of hours that are over."""
        return Sealer(self._engine)

    @cached_property
    def verifier(self) -> Verifier:
        """Checks of the log against its seals."""
        return Verifier(self._engine, self.open_month)

    @cached_property
    def prover(self) -> Prover:
        """Proofs that a line is under a seal."""
        return Prover(self._engine, self.open_month)

    @cached_property
    def archived_usage(self) -> ArchivedUsage:
        """Rows of archived months."""
        return ArchiveReader(self._engine, self._open_archive)

    @cached_property
    def archiver(self) -> MonthExporter:
        """Export of months out of the database."""
        return load_archive_classes().exporter(
            self._engine,
            self._settings.archive_dir,
            sealer=self.sealer,
            max_age=timedelta(days=self._settings.event_max_age_days),
        )

    @cached_property
    def restorer(self) -> MonthRestorer:
        """Restoring of archived months."""
        return load_archive_classes().restorer(self._engine, self._settings.archive_dir)

    def adopt(self, month: Period, now: datetime) -> SealingResult:
        """Seal rows that no application said it logged; see ``billing.audit.backfill_seals``."""
        return backfill_seals(self._engine, month, now)

    def archives(self) -> list[Archive]:
        """Every archive, oldest month first."""
        with self._engine.connect() as connection:
            return archives(connection)

    def months(self) -> list[Period]:
        """Every UTC month that has a partition, an archive or seals, oldest first."""
        with self._engine.connect() as connection:
            known = [partition.month for partition in existing_partitions(connection)]
            known += [archive.month for archive in archives(connection)]
        return self.verifier.months(known)

    def head(self) -> Seal | None:
        """The newest seal."""
        with self._engine.connect() as connection:
            return newest_seal(connection)

    def seals(self, after: int = 0) -> Iterator[tuple[Seal, bytes]]:
        """Seals by number, each with the hash that is kept beside it; streamed.

        Args:
            after: Only those with a higher number.
        """
        with snapshots(self._engine)() as connection:
            yield from read_seals(connection, after=after)

    def open_month(self, month: Period) -> MonthOfLog:
        """Open a UTC month's rows where they are: in the database, or in its archive."""
        with self._engine.connect() as connection:
            archive = archive_of(connection, month)
        if archive is not None and archive.in_files:
            return self._open_archive(archive)
        return LiveMonth(month, snapshots(self._engine))

    def _open_archive(self, archive: Archive) -> ArchivedMonth:
        return load_archive_classes().month(archive, self._settings.archive_dir, self._engine)
