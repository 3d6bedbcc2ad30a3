"""The port through which the log's readers reach months that were archived; `archive` fills it.

A month is read from its files from the moment they were verified until it is restored. A reader
asks for those months first, reads both places, and asks again: see ``read_with_stable_months``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar
from uuid import UUID

from billing.core.errors import NotFound, WeighbridgeError
from billing.core.periods import Period

_ATTEMPTS: Final = 5

Row = Mapping[str, Any]
"""Values of a logged row by the names of its columns."""

IdRange = tuple[UUID, UUID]
"""From the first id up to, not including, the second."""

_Result = TypeVar("_Result")


class ArchiveUnreadableError(WeighbridgeError):
    """A file of an archive cannot be read."""


class ArchivedRows(Protocol):
    """The rows of one archived month."""

    def lines(
        self, customer: str, low: UUID, end: UUID, *, limit: int, newest_first: bool = False
    ) -> list[Row]:
        """A customer's rows from ``low`` up to, not including, ``end``, by id.

        Raises:
            NotFound: The month's file is not there.
            ArchiveUnreadableError: It cannot be read.
        """
        ...

    def ranges(self, customer: str, ranges: Sequence[IdRange]) -> list[list[Row]]:
        """A customer's rows in each of several ranges of ids.

        Raises:
            NotFound: The month's file is not there.
            ArchiveUnreadableError: It cannot be read.
        """
        ...

    def task(self, task_id: str) -> list[Row]:
        """Every row of a task.

        Raises:
            NotFound: The month's file is not there.
            ArchiveUnreadableError: It cannot be read.
        """
        ...


class ArchivedUsage(Protocol):
    """The archived months."""

    def months(self) -> list[Period]:
        """The UTC months that are to be read from archives at this moment, oldest first."""
        ...

    def open(self, month: Period) -> ArchivedRows:
        """The rows of one of them.

        Raises:
            NotFound: The month has no archive.
        """
        ...


class NoArchivedUsage:
    """The port where nothing is ever archived."""

    def months(self) -> list[Period]:
        """No month."""
        return []

    def open(self, month: Period) -> ArchivedRows:
        """Refuse: there is no archive.

        Raises:
            NotFound: Always.
        """
        raise no_archive(month)


def no_archive(month: Period) -> NotFound:
    """The error about a month that was never archived."""
    return NotFound("archive", month.label, "see: billing archive --list")


def read_with_stable_months(
    archived: ArchivedUsage, read: Callable[[list[Period]], _Result]
) -> _Result:
    """Repeat ``read`` until no month moved between database and archive while it ran.

    Args:
        archived: Names the months that are in archives.
        read: Called with those months.

    Raises:
        WeighbridgeError: Months moved again and again.
    """
    months = archived.months()
    for _ in range(_ATTEMPTS):
        result = read(months)
        before, months = months, archived.months()
        if months == before:
            return result
    raise WeighbridgeError("months are being archived at this moment; ask again")


def split_at_months(period: Period, months: list[Period]) -> Iterator[tuple[Period, Period | None]]:
    """Cut a period into parts, oldest first, each with the archived month that it is of, if any.

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
