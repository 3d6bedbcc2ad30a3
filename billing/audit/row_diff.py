"""The rows of an hour against the leaves that were written down for it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge
from typing import Final

from billing.audit.seal_chain import Leaves

MOST_NAMED: Final = 1_000
"""Rows named of one hour and kind; of more there is the number."""

Record = tuple[bytes, bytes]
"""A row's id and leaf."""


@dataclass(slots=True)
class LoggedRow:
    """Rows of one kind: the first so many, and how many there are."""

    named: list[tuple[bytes, int | None]] = field(default_factory=list)
    """Ids, each with the number of its seal; None where it has none."""
    rows: int = 0

    def add(self, identifier: bytes, number: int | None, most: int) -> None:
        """One more."""
        self.rows += 1
        if self.rows <= most:
            self.named.append((identifier, number))


@dataclass(slots=True)
class Differences:
    """What differs in an hour of ``rows``, of which ``waiting`` have no seal yet."""

    rows: int = 0
    waiting: int = 0
    changed: LoggedRow = field(default_factory=LoggedRow)
    removed: LoggedRow = field(default_factory=LoggedRow)
    added: LoggedRow = field(default_factory=LoggedRow)
    twice: LoggedRow = field(default_factory=LoggedRow)
    """Ids that are in two lists."""

    def __bool__(self) -> bool:
        return any(told.rows for told in (self.changed, self.removed, self.added, self.twice))


def compare(
    rows: Iterable[Record], lists: Sequence[Leaves], *, most_named: int = MOST_NAMED
) -> Differences:
    """Find every row that is not as it was written down, is missing, or was never written down.

    Args:
        rows: In the order of their ids.
        lists: Each in that order; of seals and of manifests.
        most_named: The most to name of each kind.
    """
    found = Differences()
    expected = _expected(lists, found.twice, most_named)
    wanted = next(expected, None)
    for identifier, leaf in rows:
        found.rows += 1
        while wanted is not None and wanted[0] < identifier:
            found.removed.add(wanted[0], wanted[2], most_named)
            wanted = next(expected, None)
        if wanted is None or wanted[0] != identifier:
            found.added.add(identifier, None, most_named)
            continue
        found.waiting += wanted[2] is None
        if wanted[1] != leaf:
            found.changed.add(identifier, wanted[2], most_named)
        wanted = next(expected, None)
    while wanted is not None:
        found.removed.add(wanted[0], wanted[2], most_named)
        wanted = next(expected, None)
    return found


def unlisted(rows: Iterable[Record], lists: Sequence[Leaves]) -> Iterator[Record]:
    """The rows that are in no list.

    Args:
        rows: In the order of their ids.
        lists: Each in that order; of seals and of manifests.
    """
    expected = _expected(lists, LoggedRow(), 0)
    wanted = next(expected, None)
    for identifier, leaf in rows:
        while wanted is not None and wanted[0] < identifier:
            wanted = next(expected, None)
        if wanted is None or wanted[0] != identifier:
            yield identifier, leaf


def _expected(
    lists: Sequence[Leaves], twice: LoggedRow, most_named: int
) -> Iterator[tuple[bytes, bytes, int | None]]:
    """Ids, leaves and seals of all lists in the order of the ids; the first list has the say."""
    before = None
    # Not to be compared beyond the id: a number and None have no order.
    for record in merge(*map(_numbered, lists), key=lambda record: record[0]):
        if record[0] == before:
            twice.add(record[0], record[2], most_named)
            continue
        before = record[0]
        yield record


def _numbered(leaves: Leaves) -> Iterator[tuple[bytes, bytes, int | None]]:
    return ((identifier, leaf, leaves.number) for identifier, leaf in leaves)
