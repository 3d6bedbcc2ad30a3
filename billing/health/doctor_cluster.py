"""What the doctor says of a Redis Cluster as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from billing.container import Container
from billing.health.rules import HealthFinding, Level, fine
from billing.redis.cluster import ClusterClient, Member

_CHECK: Final = "Redis Cluster"


def examine_cluster(container: Container) -> Iterator[HealthFinding]:
    """One finding where Redis is a cluster; none where it is one server."""
    client: object = container.redis
    if isinstance(client, ClusterClient):
        yield verdict(client.members())


def verdict(members: Sequence[Member]) -> HealthFinding:
    """What the state of its nodes means; pure."""
    primaries = [each for each in members if each.primary_id is None and each.has_slots]
    followed = {each.primary_id for each in members if each.primary_id and not each.failing}
    down = [each.address for each in primaries if each.failing]
    alone = [each.address for each in primaries if each.id not in followed]
    if down:
        return HealthFinding(
            check=_CHECK,
            level=Level.FAIL,
            found=f"no answer from {', '.join(down)}",
            meaning="customers of its shards cannot be admitted; their usage is in the journals",
            remedy="wait for a replica to take over, or start the node",
        )
    if alone:
        return HealthFinding(
            check=_CHECK,
            level=Level.WARN,
            found=f"{len(primaries)} primaries; none follows {', '.join(alone)}",
            meaning="if that node dies, its shards are away until it is back; no event is lost",
            remedy="add a replica: valkey-cli --cluster add-node … --cluster-slave",
        )
    return fine(_CHECK, f"{len(primaries)} primaries, each with a replica")
