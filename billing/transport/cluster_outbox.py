"""The outbox on Redis Cluster: spread over nodes, each of which may be away alone."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from typing import Any, cast

import redis

from billing.redis.cluster import ClusterClient
from billing.redis.keys import SHARDS, RedisKeys
from billing.redis.scripts import text
from billing.transport.outbox import RedisOutbox


class ClusterOutbox(RedisOutbox):
    """``RedisOutbox`` where one node away must not stop the relay of the others' shards.

    Args:
        client: The cluster.
        keys: The names of the streams.
    """

    def __init__(self, client: ClusterClient, keys: RedisKeys) -> None:
        # It has the part of redis-py's interface that an outbox uses.
        super().__init__(cast("redis.Redis", client), keys)
        self._cluster = client
        self._lives: list[str] = [""] * len(self._streams)

    def claim(self, owner: str, ttl_ms: int) -> list[int]:
        """See ``RedisOutbox.claim``, of the shards whose node answers; raises where none does."""
        answers = self._answers(
            lambda pipeline, shard: self._claim(
                keys=[self._keys.claim(shard)], args=[owner, ttl_ms], client=pipeline
            )
        )
        return [shard for shard, answer in enumerate(answers) if answer == 1]

    def give_back(self, owner: str) -> None:
        """See ``RedisOutbox.give_back``, of the shards whose node answers."""
        self._answers(
            lambda pipeline, shard: self._give_back(
                keys=[self._keys.claim(shard)], args=[owner], client=pipeline
            )
        )

    def generation(self) -> str:
        """See ``RedisOutbox.generation``: each shard's marker, and the run id of its node.

        A failover, a restart and a move of slots change it; after the last nothing was lost, and
        the journal is published again for nothing. What a node that does not answer would say is
        taken to be what it said before: once it or its successor answers, it is seen.
        """
        mine = uuid.uuid4().hex
        markers = self._answers(
            lambda pipeline, shard: pipeline.set(
                self._keys.shard_marker(shard), mine, nx=True, get=True
            )
        )
        with self._pipeline():
            run_ids = self._cluster.lives(self._streams)
        for shard, (marker, run_id) in enumerate(zip(markers, run_ids, strict=True)):
            if run_id is not None and not isinstance(marker, Exception):
                self._lives[shard] = f"{mine if marker is None else text(marker)}:{run_id}"
        return hashlib.sha256("\n".join(self._lives).encode()).hexdigest()

    def _answers(self, ask: Callable[[Any, int], object]) -> list[Any]:
        """An answer per shard, or why there is none; raises where no shard's node answers."""
        with self._pipeline() as pipeline:
            for shard in range(SHARDS):
                ask(pipeline, shard)
            answers: list[Any] = pipeline.execute(raise_on_error=False)
            if all(isinstance(answer, Exception) for answer in answers):
                raise answers[0]
        return answers
