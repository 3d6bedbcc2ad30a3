"""The outbox: usage events that RabbitMQ has not confirmed yet, one Redis Stream per shard.

``settle`` appends to it in the same atomic step that charges the account (``billing.quota``); the
relay reads it, publishes, and removes what was confirmed.
"""

from __future__ import annotations

import math
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import redis
import structlog

from billing.core.errors import WeighbridgeError
from billing.core.usage_event import InvalidEvent, UsageEvent
from billing.core.usage_event_json import from_wire
from billing.redis.keys import SHARDS, RedisKeys
from billing.redis.scripts import own_text, text
from billing.transport.settled_figures import EncodedEvent, read_settled

_log = structlog.get_logger(__name__)

UNREADABLE: Final = (InvalidEvent, KeyError, ValueError, TypeError, AttributeError, OverflowError)
"""Of ``entry_event``: the stream entry is no event."""
_PROBE: Final = 4
"""Entries asked of a shard that had few the last time."""


class OutboxUnavailable(WeighbridgeError):  # noqa: N818 - a state of the outbox, not a mistake
    """The outbox (Redis) did not answer. Its events stay where they are."""


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """One event that waits to be published: where it is, and its bytes with the decided figures."""

    shard: int
    entry_id: str
    encoded: EncodedEvent

    @property
    def event(self) -> UsageEvent:
        """What it says.

        Raises:
            InvalidEvent: It is an event by its names alone; the consumer will keep it with this.
        """
        return from_wire(self.encoded.wire)


class RedisOutbox:
    """The outbox in Redis or Valkey. A method is one round trip, or ``OutboxUnavailable``.

    Args:
        client: A client whose socket time-outs bound every call. May be shared by threads.
        keys: The names of the streams.
    """

    def __init__(self, client: redis.Redis, keys: RedisKeys) -> None:
        self._client = client
        self._keys = keys
        self._streams: list[str] = keys.outbox_keys()
        self._claim = client.register_script(own_text("claim"))
        self._give_back = client.register_script(own_text("give_back"))
        self._put_aside_script = client.register_script(own_text("put_aside"))
        self._busy: frozenset[int] = frozenset()

    def claim(self, owner: str, ttl_ms: int) -> list[int]:
        """Claim what shards are free and renew those of ``owner``; returns all that it has.

        A claim keeps relays from doing the same work twice. It is not a lock: two relays on one
        shard only send duplicates, which the log drops.
        """
        with self._pipeline() as pipeline:
            for shard in range(SHARDS):
                self._claim(keys=[self._keys.claim(shard)], args=[owner, ttl_ms], client=pipeline)
            answers = pipeline.execute()
        return [shard for shard, answer in enumerate(answers) if answer]

    def give_back(self, owner: str) -> None:
        """End the claims of ``owner``, so that another relay need not wait until they run out."""
        with self._pipeline() as pipeline:
            for shard in range(SHARDS):
                self._give_back(keys=[self._keys.claim(shard)], args=[owner], client=pipeline)
            pipeline.execute()

    def read(self, shards: Sequence[int], count: int) -> list[OutboxEntry]:
        """The oldest entries of each shard, about ``count`` in all, in order within a shard.

        ``count`` is divided among the shards that had much to say the last time; of the others
        a few entries are asked, so that none starves and an idle outbox costs little.

        An entry that is not an event is put aside into the stream ``…:out:bad`` and logged.
        """
        busy = self._busy.intersection(shards)
        share = max(math.ceil(count / len(busy)), _PROBE) if busy else _PROBE
        asked = {shard: share if shard in busy else _PROBE for shard in shards}
        with self._pipeline() as pipeline:
            for shard, wanted in asked.items():
                pipeline.xrange(self._streams[shard], count=wanted)
            answers = pipeline.execute()
        found = dict(zip(asked, answers, strict=True))
        self._busy = frozenset(shard for shard in asked if len(found[shard]) == asked[shard])
        return [entry for shard in asked for entry in self._decoded(shard, found[shard])]

    def everything(self, shard: int, *, page: int) -> Iterator[OutboxEntry]:
        """Every entry of a shard, oldest first, page by page; one round trip each.

        For checks: a relay reads what is oldest.
        """
        last = "-"
        while True:
            with self._pipeline() as pipeline:
                pipeline.xrange(self._streams[shard], min=last, count=page)
                (found,) = pipeline.execute()
            yield from self._decoded(shard, found)
            if len(found) < page:
                return
            last = f"({text(found[-1][0])}"

    def remove(self, entries: Sequence[OutboxEntry]) -> None:
        """Take out what was confirmed."""
        by_shard: defaultdict[int, list[str]] = defaultdict(list)
        for entry in entries:
            by_shard[entry.shard].append(entry.entry_id)
        with self._pipeline() as pipeline:
            for shard, ids in by_shard.items():
                pipeline.xdel(self._streams[shard], *ids)
            pipeline.execute()

    def length(self) -> int:
        """How many entries wait, over all shards."""
        return sum(self._for_each(lambda pipeline, shard: pipeline.xlen(self._streams[shard])))

    def bad_length(self) -> int:
        """How many entries could not be read and were put aside, over all shards."""
        return sum(
            self._for_each(lambda pipeline, shard: pipeline.xlen(self._keys.unreadable(shard)))
        )

    def oldest_ms(self) -> int | None:
        """When the oldest entry was put in, by the server's clock; None if there is none."""
        firsts = self._for_each(
            lambda pipeline, shard: pipeline.xrange(self._streams[shard], count=1)
        )
        ages = [int(text(first[0][0]).partition("-")[0]) for first in firsts if first]
        return min(ages, default=None)

    def generation(self) -> str:
        """A name for this life of the data: a random marker kept in it, and the server's run id.

        The marker goes when the data goes; the run id changes with a restart or a failover, which
        may have cost the newest second (``appendfsync everysec``).
        """
        with self._pipeline() as pipeline:
            pipeline.set(self._keys.marker, uuid.uuid4().hex, nx=True)
            pipeline.get(self._keys.marker)
            pipeline.info("server")
            _, marker, info = pipeline.execute()
        return f"{text(marker)}:{info['run_id']}"

    def _decoded(
        self, shard: int, found: list[tuple[Any, dict[Any, Any]]]
    ) -> Iterator[OutboxEntry]:
        for raw_id, fields in found:
            entry_id = text(raw_id)
            try:
                yield OutboxEntry(shard, entry_id, entry_event(fields))
            except UNREADABLE as error:
                self._put_aside(shard, entry_id, fields, error)

    def _put_aside(
        self, shard: int, entry_id: str, fields: Mapping[Any, Any], error: Exception
    ) -> None:
        unreadable = self._keys.unreadable(shard)
        kept = {**fields, "error": repr(error)[:500]}
        with self._pipeline() as pipeline:
            self._put_aside_script(
                keys=[self._streams[shard], unreadable],
                args=[entry_id, *(part for pair in kept.items() for part in pair)],
                client=pipeline,
            )
            (moved,) = pipeline.execute()
        if not moved:
            return
        _log.error(
            "outbox_entry_unreadable",
            stream=unreadable,
            entry=entry_id,
            error=str(error),
            money="one usage event is not billed; it is kept in the stream named here",
            remedy="find out what wrote it, correct it and put it back into the outbox",
        )

    def _for_each(self, ask: Callable[[Any, int], object]) -> list[Any]:
        with self._pipeline() as pipeline:
            for shard in range(SHARDS):
                ask(pipeline, shard)
            answers: list[Any] = pipeline.execute()
        return answers

    @contextmanager
    def _pipeline(self) -> Iterator[Any]:
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                yield pipeline
        except (redis.RedisError, OSError) as error:
            raise OutboxUnavailable(
                f"the outbox in Redis did not answer ({error!r:.200}); its events stay where they "
                "are and are published when it does"
            ) from error


def entry_event(fields: Mapping[Any, Any]) -> EncodedEvent:
    """The event of a stream entry: ``e`` the event, ``a`` amount, ``s`` shortfall, ``p`` epoch.

    Raises:
        UNREADABLE: It is no event.
    """
    found = {text(name): value for name, value in fields.items()}
    wire = found["e"]
    return read_settled(
        wire.encode() if isinstance(wire, str) else wire,
        amount=int(found["a"]),
        shortfall=int(found["s"]),
        quota_epoch=int(found["p"]),
    )
