"""Seals: one per hour of usage and for what came late to it, each chained to the one before. Pure.

A seal's hash is SHA-256 over ``0x02``, the previous seal's hash, then as 8 bytes each, the highest
first: its number, the hour's start and the moment of sealing in milliseconds since 1970, how many
rows it covers, 1 for what was adopted or else 0; then the Merkle root. The first one's previous
hash is 32 zero bytes. Whoever has one seal's hash can tell whether any seal up to it was changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from itertools import pairwise
from typing import Final

from billing.audit.merkle import HASH_BYTES, root_of
from billing.core.clock import to_ms
from billing.core.errors import InvalidValue

_SEAL: Final = b"\x02"
_ID_BYTES: Final = 16
RECORD_BYTES: Final = _ID_BYTES + HASH_BYTES
"""An id and its leaf."""

GENESIS: Final = bytes(HASH_BYTES)
"""The hash in place of a seal before the first."""

ANCHOR_HEAD: Final = "# Weighbridge seals, form 1: number and hash of each"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """A seal: the root over rows of one hour of usage, chained to the seal before.

    Attributes:
        number: From 1, without gaps.
        hour: The UTC hour of ``metered_at`` of its rows.
        sealed_at: The moment, by the sealer's clock, to the millisecond.
        rows: Their number.
        adopted: True for rows that no application recorded as logged.
        root: Merkle root over their leaves in the order of their ids.
        previous: Hash of the seal before.
    """

    number: int
    hour: datetime
    sealed_at: datetime
    rows: int
    adopted: bool
    root: bytes
    previous: bytes

    @property
    def hash(self) -> bytes:
        """The hash that the next seal is chained to."""
        numbers = (self.number, to_ms(self.hour), to_ms(self.sealed_at), self.rows, self.adopted)
        packed = b"".join(int(each).to_bytes(8, "big") for each in numbers)
        return sha256(_SEAL + self.previous + packed + self.root).digest()


@dataclass(frozen=True, slots=True)
class Leaves:
    """Ids and leaves of rows, side by side, in the order of the ids.

    Attributes:
        number: The seal that they are of; None where they wait for theirs.
        ids: 16 bytes each.
        hashes: 32 bytes each.
    """

    number: int | None
    ids: bytes
    hashes: bytes

    def __len__(self) -> int:
        return len(self.ids) // _ID_BYTES

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        return zip(_cut(self.ids, _ID_BYTES), _cut(self.hashes, HASH_BYTES), strict=True)

    @property
    def is_whole(self) -> bool:
        """Whether each id has its leaf."""
        return len(self.ids) == len(self) * _ID_BYTES and len(self.hashes) == len(self) * HASH_BYTES

    @property
    def is_ordered(self) -> bool:
        """Whether the ids are in order, each of them once."""
        return all(one < other for one, other in pairwise(_cut(self.ids, _ID_BYTES)))

    @property
    def root(self) -> bytes:
        """The Merkle root over them."""
        return root_of(self.split())

    def split(self) -> list[bytes]:
        """Cut the hashes into single leaves."""
        return list(_cut(self.hashes, HASH_BYTES))

    def index_of(self, identifier: bytes) -> int | None:
        """Find the place of a row, from 0; None where it is not among them."""
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            found = self.ids[middle * _ID_BYTES : (middle + 1) * _ID_BYTES]
            if found == identifier:
                return middle
            low, high = (middle + 1, high) if found < identifier else (low, middle)
        return None

    def fault(self, seal: Seal | None) -> str | None:
        """Find what is wrong with them; None where nothing is.

        Args:
            seal: That of ``number``.
        """
        if not self.is_whole:
            return "its list of leaves is cut off"
        if not self.is_ordered:
            return "its list of leaves is out of order"
        if seal is not None and (len(self) != seal.rows or self.root != seal.root):
            return "its list of leaves is not the one that was sealed"
        return None


def gathered(parts: Iterable[Leaves], number: int | None = None) -> Leaves:
    """Merge several lists into one, in the order of the ids.

    Args:
        parts: In any order.
        number: The seal that the whole is of.
    """
    records = sorted(identifier + leaf for part in parts for identifier, leaf in part)
    return Leaves(
        number,
        b"".join(each[:_ID_BYTES] for each in records),
        b"".join(each[_ID_BYTES:] for each in records),
    )


def next_seal(
    last: Seal | None, leaves: Leaves, *, hour: datetime, sealed_at: datetime, adopted: bool = False
) -> Seal:
    """Make the seal over some leaves.

    Args:
        last: The newest there is; None where there is none.
        leaves: In the order of their ids.
        hour: The UTC hour that all of them fall in.
        sealed_at: Now; kept to the millisecond.
        adopted: See ``Seal``.
    """
    return Seal(
        number=last.number + 1 if last else 1,
        hour=hour,
        sealed_at=sealed_at.replace(microsecond=sealed_at.microsecond // 1000 * 1000),
        rows=len(leaves),
        adopted=adopted,
        root=leaves.root,
        previous=last.hash if last else GENESIS,
    )


@dataclass(frozen=True, slots=True)
class Break:
    """A place where the chain does not hold; ``hour`` is that of the seal there, if any."""

    number: int
    hour: datetime | None
    words: str


def breaks_of(
    seals: Iterable[tuple[Seal, bytes]], anchor: Mapping[int, bytes] | None = None
) -> Iterator[Break]:
    """Find where the chain does not hold, or differs from an anchor.

    Args:
        seals: Each with the hash kept beside it, by number.
        anchor: Hashes by number, of ``parse_anchor``.
    """
    expected, previous = 1, GENESIS
    seen: set[int] = set()
    wanted = anchor or {}
    for seal, kept in seals:
        if seal.number != expected:
            yield Break(expected, None, f"seals {expected} to {seal.number - 1} are gone")
        elif seal.previous != previous:
            yield Break(seal.number, seal.hour, "it is not chained to the seal before it")
        if seal.hash != kept:
            yield Break(seal.number, seal.hour, "its hash is not the one of what it says")
        if seal.number in wanted:
            seen.add(seal.number)
            if wanted[seal.number] != kept:
                yield Break(seal.number, seal.hour, "the anchor has another hash for it")
        expected, previous = seal.number + 1, kept
    for number in sorted(wanted.keys() - seen):
        yield Break(number, None, "the anchor has it, the database does not")


def anchor_line(number: int, kept: bytes) -> str:
    """One seal's line in an anchor file."""
    return f"{number} {kept.hex()}"


def parse_anchor(lines: Sequence[str]) -> dict[int, bytes]:
    """Hashes by number, of a file of ``billing seals export``; empty lines and # are skipped.

    Raises:
        InvalidValue: A line that is neither, two hashes for one number, or no seal at all.
    """
    found: dict[int, bytes] = {}
    for line in (each.strip() for each in lines):
        if not line or line.startswith("#"):
            continue
        number, _, text = line.partition(" ")
        try:
            kept = bytes.fromhex(text.strip())
        except ValueError:
            kept = b""
        if not number.isdecimal() or len(kept) != HASH_BYTES:
            raise InvalidValue("anchor", line[:80], "use a file of: billing seals export")
        if found.setdefault(int(number), kept) != kept:
            raise InvalidValue("anchor", line[:80], "it has two hashes for one seal")
    if not found:
        raise InvalidValue("anchor", "no seals", "use a file of: billing seals export")
    return found


def _cut(whole: bytes, size: int) -> Iterator[bytes]:
    return (whole[start : start + size] for start in range(0, len(whole), size))
