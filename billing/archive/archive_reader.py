"""Archived months for the log's readers: the port of ``billing.usage_log.archived_usage``."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.engine import Engine

from billing.archive.catalog import Archive, archive_of, archives
from billing.core.periods import Period
from billing.usage_log.archived_usage import ArchivedRows, no_archive


class ArchiveReader:
    """The archives that the database knows of.

    Args:
        engine: Any that may read.
        open_month: Opens an archive's files; called only where there is something to read.
    """

    def __init__(self, engine: Engine, open_month: Callable[[Archive], ArchivedRows]) -> None:
        self._engine = engine
        self._open_month = open_month

    def months(self) -> list[Period]:
        """The UTC months that are to be read from archives at this moment, oldest first."""
        with self._engine.connect() as connection:
            return [each.month for each in archives(connection) if each.in_files]

    def open(self, month: Period) -> ArchivedRows:
        """The rows of one of them.

        Raises:
            NotFound: The month has no archive.
        """
        with self._engine.connect() as connection:
            archive = archive_of(connection, month)
        if archive is None:
            raise no_archive(month)
        return self._open_month(archive)
