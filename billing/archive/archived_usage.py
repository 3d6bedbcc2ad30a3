"""Where lines of archived months are looked up by those who otherwise ask the database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar
from uuid import UUID

from sqlalchemy.engine import Engine

from billing.archive.catalog import Archive, archive_of, archives
from billing.core.errors import NotFound, WeighbridgeError
from billing.core.periods import Period

_MOVES: Final = 5

IdRange = tuple[UUID, UUID]
"""From the first up to, not including, the second."""

_Answer = TypeVar("_Answer")


class ArchivedUsage(Protocol):
    """Lines of archived months."""

    def months(self) -> list[Period]:
        """The UTC months that are to be read from archives at this moment, oldest first."""
        ...

    def lines(
        self,
        month: Period,
        customer: str,
        low: UUID,
        end: UUID,
        *,
        limit: int,
        newest_first: bool = False,
    ) -> list[Mapping[str, Any]]:
        """A customer's rows from ``low`` up to, not including, ``end``, by id.

        Raises:
            NotFound: The month's file is not there.
            ArchiveUnreadableError: It cannot be read.
        """
        ...

    def pieces(
        self, month: Period, customer: str, ranges: Sequence[IdRange]
    ) -> list[list[Mapping[str, Any]]]:
        """A customer's rows in each of several ranges of ids.

        Raises:
            NotFound: The month's file is not there.
            ArchiveUnreadableError: It cannot be read.
        """
        ...

    def task(self, month: Period, task_id: str) -> list[Mapping[str, Any]]:
        """Every row of a task.

        Raises:
            NotFound: The month's file is not there.
            ArchiveUnreadableError: It cannot be read.
        """
        ...


class OpenedMonth(Protocol):
    """One archived month; ``billing.archive.reader.ArchivedMonth``."""

    def lines(
        self, customer: str, low: UUID, end: UUID, *, limit: int, newest_first: bool = False
    ) -> list[Mapping[str, Any]]:
        """As of ``ArchivedUsage``."""
        ...

    def pieces(self, customer: str, ranges: Sequence[IdRange]) -> list[list[Mapping[str, Any]]]:
        """As of ``ArchivedUsage``."""
        ...

    def task(self, task_id: str) -> list[Mapping[str, Any]]:
        """As of ``ArchivedUsage``."""
        ...


class NoArchivedUsage:
    """For whoever never archives."""

    def months(self) -> list[Period]:
        """None."""
        return []

    def lines(
        self,
        month: Period,
        customer: str,
        low: UUID,
        end: UUID,
        *,
        limit: int,
        newest_first: bool = False,
    ) -> list[Mapping[str, Any]]:
        """None."""
        del month, customer, low, end, limit, newest_first
        return []

    def pieces(
        self, month: Period, customer: str, ranges: Sequence[IdRange]
    ) -> list[list[Mapping[str, Any]]]:
        """None."""
        del month, customer
        return [[] for _ in ranges]

    def task(self, month: Period, task_id: str) -> list[Mapping[str, Any]]:
        """None."""
        del month, task_id
        return []


class ArchiveReader:
    """The archives that the database knows of.

    Args:
        engine: Any that may read.
        open_month: Opens an archive's files; called only where there is something to read.
    """

    def __init__(self, engine: Engine, open_month: Callable[[Archive], OpenedMonth]) -> None:
        self._engine = engine
        self._open_month = open_month

    def months(self) -> list[Period]:
        """The UTC months that are to be read from archives at this moment, oldest first."""
        with self._engine.connect() as connection:
            return [each.month for each in archives(connection) if each.in_files]

    def lines(
        self,
        month: Period,
        customer: str,
        low: UUID,
        end: UUID,
        *,
        limit: int,
        newest_first: bool = False,
    ) -> list[Mapping[str, Any]]:
        """A customer's rows from ``low`` up to, not including, ``end``, by id.

        Raises:
            NotFound: The month's file is not there.
            ArchiveUnreadableError: It cannot be read.
        """
        opened = self._opened(month)
        return opened.lines(customer, low, end, limit=limit, newest_first=newest_first)

    def pieces(
        self, month: Period, customer: str, ranges: Sequence[IdRange]
    ) -> list[list[Mapping[str, Any]]]:
        """A customer's rows in each of several ranges of ids.

        Raises:
            NotFound: The month's file is not there.
            ArchiveUnreadableError: It cannot be read.
        """
        return self._opened(month).pieces(customer, ranges)

    def task(self, month: Period, task_id: str) -> list[Mapping[str, Any]]:
        """Every row of a task.

        Raises:
            NotFound: The month's file is not there.
            ArchiveUnreadableError: It cannot be read.
        """
        return self._opened(month).task(task_id)

    def _opened(self, month: Period) -> OpenedMonth:
        with self._engine.connect() as connection:
            archive = archive_of(connection, month)
        if archive is None:
            raise NotFound("archive", month.label, "see: billing archive --list")
        return self._open_month(archive)


def steadily(shelf: ArchivedUsage, read: Callable[[list[Period]], _Answer]) -> _Answer:
    """What ``read`` says while no month moves between database and archive.

    Args:
        shelf: Tells which months are in archives.
        read: Called with those months.

    Raises:
        WeighbridgeError: Months moved again and again.
    """
    months = shelf.months()
    for _ in range(_MOVES):
        found = read(months)
        before, months = months, shelf.months()
        if months == before:
            return found
    raise WeighbridgeError("months are being archived at this moment; ask again")


def parts_of(period: Period, months: list[Period]) -> Iterator[tuple[Period, Period | None]]:
    """The period in pieces, oldest first, each with the archived month that it is of, if any.

    Args:
        period: Half-open.
        months: Archived ones, oldest first.
    """
    at = period.start
    for month in months:
        start, end = max(at, month.start), min(period.end, month.end)
        if start < end:
            if at < start:
                yield Period(period.label, at, start), None
            yield Period(period.label, start, end), month
            at = end
    if at < period.end:
        yield Period(period.label, at, period.end), None
