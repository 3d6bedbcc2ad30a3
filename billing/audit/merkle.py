"""Merkle trees over the log's rows, as RFC 9162 (2.1.1) defines them; pure.

Leaves and inner nodes are hashed with different first bytes, so that no inner node can be passed
off as a leaf. A node without a neighbour rises unchanged, which gives the tree of the RFC level by
level. A root says nothing of how many leaves it has: whoever keeps one keeps their number beside it
(``billing.audit.seal_chain``).
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Final

from billing.core.errors import InvalidValue

HASH_BYTES: Final = 32
_LEAF: Final = b"\x00"
_NODE: Final = b"\x01"
_FULL: Final = "use a whole SHA-256, 32 bytes"


def leaf_hash(content: bytes) -> bytes:
    """The leaf of some content."""
    return sha256(_LEAF + content).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The inner node over two nodes."""
    return sha256(_NODE + left + right).digest()


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The root over leaves in their order; that over none is the hash of nothing.

    Args:
        leaves: Of ``leaf_hash``.
    """
    level = list(leaves)
    if not level:
        return sha256().digest()
    while len(level) > 1:
        level = _above(level)
    return level[0]


def path_of(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The neighbours on the way from one leaf to the root, from below: a proof of inclusion.

    Args:
        leaves: All of them, in their order.
        index: Which one, from 0.

    Raises:
        InvalidValue: There is no such leaf.
    """
    if not 0 <= index < len(leaves):
        raise InvalidValue("index", index, f"use 0 to {len(leaves) - 1}")
    path = []
    level = list(leaves)
    while len(level) > 1:
        if index ^ 1 < len(level):
            path.append(level[index ^ 1])
        level, index = _above(level), index // 2
    return path


def climb(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root that a leaf and its path lead to; equal to the tree's root where they belong to it.

    Args:
        leaf: Of ``leaf_hash``.
        index: The leaf's place, from 0.
        size: How many leaves the tree has.
        path: Of ``path_of``.

    Raises:
        InvalidValue: No tree of this size has a path of this length at this place.
    """
    if not 0 <= index < size:
        raise InvalidValue("index", index, f"use 0 to {size - 1}")
    node = _whole("leaf", leaf)
    waiting = list(path)
    while size > 1:
        if index ^ 1 < size:
            if not waiting:
                raise InvalidValue("path", len(path), "it ends before the root")
            other = _whole("path", waiting.pop(0))
            node = node_hash(other, node) if index & 1 else node_hash(node, other)
        index, size = index // 2, (size + 1) // 2
    if waiting:
        raise InvalidValue("path", len(path), "it goes on beyond the root")
    return node


def _above(level: list[bytes]) -> list[bytes]:
    pairs = zip(level[::2], level[1::2], strict=False)
    # Written out, not through node_hash: this is the loop in which sealing spends its time.
    above = [sha256(_NODE + left + right).digest() for left, right in pairs]
    if len(level) % 2:
        above.append(level[-1])
    return above


def _whole(field: str, value: bytes) -> bytes:
    if len(value) != HASH_BYTES:
        raise InvalidValue(field, value.hex(), _FULL)
    return value
