"""Merkle trees: one changed leaf changes the root, and a proof proves one leaf at one place."""

from __future__ import annotations

import random
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.audit.merkle import path_of, root_of
from billing.core.errors import InvalidValue

contents = st.lists(st.binary(max_size=40), min_size=1, max_size=70, unique=True)
chosen = st.integers(min_value=0, max_value=10**6)

# RFC 6962's test vectors of the certificate-transparency implementations: eight leaves, each root.
INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657"]
INPUTS += ["606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def leaf_hash(content: bytes) -> bytes:
    return sha256(b"\x00" + content).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def climb(leaf: bytes, index: int, size: int, path: list[bytes]) -> bytes | None:
    """The root that a leaf and its path lead to; None where the path ends early or goes on."""
    node, waiting = leaf, list(path)
    while size > 1:
        if index ^ 1 < size:
            if not waiting:
                return None
            other = waiting.pop(0)
            node = node_hash(other, node) if index & 1 else node_hash(node, other)
        index, size = index // 2, (size + 1) // 2
    return None if waiting else node


def leaves_of(found: list[bytes]) -> list[bytes]:
    return [leaf_hash(content) for content in found]


@pytest.mark.parametrize("size", range(1, 9))
def test_roots_are_those_of_certificate_transparency(size: int):
    leaves = [leaf_hash(bytes.fromhex(text)) for text in INPUTS[:size]]
    assert root_of(leaves).hex() == ROOTS[size - 1]


def test_the_root_over_nothing_is_the_hash_of_nothing():
    assert root_of([]) == sha256().digest()


def split(leaves: list[bytes]) -> bytes:
    """The definition of RFC 9162, 2.1.1: the left side is the largest power of two that fits."""
    if len(leaves) == 1:
        return leaves[0]
    left = 1 << ((len(leaves) - 1).bit_length() - 1)
    return node_hash(split(leaves[:left]), split(leaves[left:]))


@given(contents)
def test_building_level_by_level_is_the_tree_of_the_definition(found: list[bytes]):
    leaves = leaves_of(found)
    assert root_of(leaves) == split(leaves)


@given(contents, chosen, st.binary(max_size=40))
def test_a_change_of_one_leaf_changes_the_root(found: list[bytes], at: int, other: bytes):
    leaves = leaves_of(found)
    changed = list(leaves)
    changed[at % len(leaves)] = leaf_hash(other)
    assert (root_of(changed) == root_of(leaves)) == (changed == leaves)


@given(contents, chosen)
def test_a_leaf_taken_away_doubled_or_moved_changes_the_root(found: list[bytes], at: int):
    leaves = leaves_of(found)
    index = at % len(leaves)
    without = leaves[:index] + leaves[index + 1 :]
    doubled = [*leaves[: index + 1], leaves[index], *leaves[index + 1 :]]
    assert root_of(without) != root_of(leaves)
    assert root_of(doubled) != root_of(leaves)
    if len(leaves) > 1:
        moved = [*leaves[1:], leaves[0]]
        assert root_of(moved) != root_of(leaves)


@given(contents)
def test_every_leaf_has_a_path_to_the_root(found: list[bytes]):
    leaves = leaves_of(found)
    for index, leaf in enumerate(leaves):
        assert climb(leaf, index, len(leaves), path_of(leaves, index)) == root_of(leaves)


@given(contents, chosen, chosen)
def test_a_path_proves_its_own_leaf_at_its_own_place_only(found: list[bytes], one: int, other: int):
    leaves = leaves_of(found)
    index, place = one % len(leaves), other % len(leaves)
    path = path_of(leaves, index)

    def reaches(leaf: bytes, where: int) -> bool:
        return climb(leaf, where, len(leaves), path) == root_of(leaves)

    assert reaches(leaves[place], index) == (place == index)
    assert reaches(leaves[index], place) == (place == index)


@given(contents, chosen, st.binary(max_size=40))
def test_a_bent_path_leads_elsewhere(found: list[bytes], at: int, bend: bytes):
    leaves = leaves_of(found)
    index = at % len(leaves)
    path = path_of(leaves, index)
    for step in range(len(path)):
        bent = [*path[:step], leaf_hash(bend), *path[step + 1 :]]
        assert (climb(leaves[index], index, len(leaves), bent) == root_of(leaves)) == (bent == path)


@given(contents)
def test_an_inner_node_cannot_pass_as_a_leaf(found: list[bytes]):
    # Second preimage: the level above, taken for leaves, has the same root but for the first bytes.
    leaves = leaves_of(found)
    pairs = [leaves[at : at + 2] for at in range(0, len(leaves), 2)]
    posing = [leaf_hash(b"".join(pair)) for pair in pairs]
    assert root_of(posing) != root_of(leaves)
    assert all(node_hash(*pair) != leaf_hash(b"".join(pair)) for pair in pairs if len(pair) == 2)


def test_there_is_no_path_from_a_leaf_that_is_not_there():
    with pytest.raises(InvalidValue, match="0 to 1"):
        path_of(leaves_of([b"a", b"b"]), 2)


def test_a_path_through_many_leaves_is_short():
    rng = random.Random(7)
    leaves = [rng.randbytes(32) for _ in range(100_000)]
    assert len(path_of(leaves, 77_777)) == 17
