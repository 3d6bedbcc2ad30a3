"""The doctor on the nodes of a Redis Cluster."""

from __future__ import annotations

import pytest

from billing.health.facts import redis_place
from billing.health.finding import Level
from billing.health.rules import cluster
from billing.redis.cluster import Member


def _node(name: str, of: str | None = None, *, failing: bool = False, slots: bool = True) -> Member:
    return Member(
        id=name, address=f"{name}:1", primary_id=of, has_slots=slots and not of, failing=failing
    )


@pytest.mark.parametrize(
    ("members", "level", "says"),
    [
        ([_node("a"), _node("b"), _node("c", "a"), _node("d", "b")], Level.OK, "2 primaries"),
        ([_node("a"), _node("b"), _node("c", "a")], Level.WARN, "none follows b:1"),
        ([_node("a"), _node("c", "a", failing=True)], Level.WARN, "none follows a:1"),
        ([_node("a", failing=True), _node("c", "a")], Level.FAIL, "no answer from a:1"),
        # What a failover left behind: a dead node without slots is nobody's.
        (
            [_node("old", failing=True, slots=False), _node("a"), _node("b", "a")],
            Level.OK,
            "1 primaries",
        ),
    ],
)
def test_a_primary_without_a_replica_is_a_warning_and_one_that_is_down_a_fault(
    members: list[Member], level: Level, says: str
):
    finding = cluster(members)
    assert finding.level is level
    assert says in finding.found


def test_a_cluster_is_nobody_elses_database():
    assert redis_place("redis+cluster://:secret@a:1,b:2") == "a:1,b:2"
