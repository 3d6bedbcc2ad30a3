"""Comparison of an hour's rows with the leaves recorded when they were logged. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge
from typing import Final

from billing.audit.seal_chain import Leaves

MOST_NAMED: Final = 1_000
"""The most rows named of one hour and kind; beyond it they are counted."""

Record = tuple[bytes, bytes]
"""A row's id and leaf."""


@dataclass(slots=True)
class NamedRows:
    """Rows of one kind: the first so many by id, and their number."""

    named: list[tuple[bytes, int | None]] = field(default_factory=list)
    """Ids, each with the number of its seal; None where it has none."""
    rows: int = 0

    def add(self, identifier: bytes, number: int | None, most: int) -> None:
        """Count a row, and name it while there is room."""
        self.rows += 1
        if self.rows <= most:
            self.named.append((identifier, number))


@dataclass(slots=True)
class RowDiff:
    """The differences of an hour of ``rows``, of which ``waiting`` have no seal yet."""

    rows: int = 0
    waiting: int = 0
    changed: NamedRows = field(default_factory=NamedRows)
    removed: NamedRows = field(default_factory=NamedRows)
    added: NamedRows = field(default_factory=NamedRows)
    twice: NamedRows = field(default_factory=NamedRows)
    """Ids that are in two lists."""

    def __bool__(self) -> bool:
        return any(each.rows for each in (self.changed, self.removed, self.added, self.twice))


def compare(
    rows: Iterable[Record], lists: Sequence[Leaves], *, most_named: int = MOST_NAMED
) -> RowDiff:
    """Find every row that differs from its leaf, is missing, or has no leaf.

    Args:
        rows: In the order of their ids.
        lists: Each in that order; of seals and of manifests.
        most_named: The most to name of each kind.
    """
    diff = RowDiff()
    expected = _expected(lists, diff.twice, most_named)
    wanted = next(expected, None)
    for identifier, leaf in rows:
        diff.rows += 1
        while wanted is not None and wanted[0] < identifier:
            diff.removed.add(wanted[0], wanted[2], most_named)
            wanted = next(expected, None)
        if wanted is None or wanted[0] != identifier:
            diff.added.add(identifier, None, most_named)
            continue
        diff.waiting += wanted[2] is None
        if wanted[1] != leaf:
            diff.changed.add(identifier, wanted[2], most_named)
        wanted = next(expected, None)
    while wanted is not None:
        diff.removed.add(wanted[0], wanted[2], most_named)
        wanted = next(expected, None)
    return diff


def unlisted(rows: Iterable[Record], lists: Sequence[Leaves]) -> Iterator[Record]:
    """Find the rows that are in no list.

    Args:
        rows: In the order of their ids.
        lists: Each in that order; of seals and of manifests.
    """
    expected = _expected(lists, NamedRows(), 0)
    wanted = next(expected, None)
    for identifier, leaf in rows:
        while wanted is not None and wanted[0] < identifier:
            wanted = next(expected, None)
        if wanted is None or wanted[0] != identifier:
            yield identifier, leaf


def _expected(
    lists: Sequence[Leaves], twice: NamedRows, most_named: int
) -> Iterator[tuple[bytes, bytes, int | None]]:
    """Merge the lists by id: id, leaf and seal; of an id that is in two, the first list counts."""
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
