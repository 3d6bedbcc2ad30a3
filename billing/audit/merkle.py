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
_NODE: Final = b"\x01"


def root_of(leaves: Sequence[bytes]) -> bytes:
    """Compute the root over leaves in their order; that over none is the hash of nothing.

    Args:
        leaves: Of ``billing.core.row_hash``.
    """
    level = list(leaves)
    if not level:
        return sha256().digest()
    while len(level) > 1:
        level = _above(level)
    return level[0]


def path_of(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Collect the neighbours on the way from one leaf to the root, from below: an inclusion proof.

    Args:
        leaves: All of them, in their order.
        index: The leaf's place, from 0.

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


def _above(level: list[bytes]) -> list[bytes]:
    pairs = zip(level[::2], level[1::2], strict=False)
    # The loop in which sealing spends its time.
    above = [sha256(_NODE + left + right).digest() for left, right in pairs]
    if len(level) % 2:
        above.append(level[-1])
    return above
