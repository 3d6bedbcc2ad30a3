"""Names of every key in Redis: 64 shards, one Redis hash tag each.

A shard is a hash slot, so every script touches one slot only, and a cluster spreads the shards.
No other module builds a key.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final

SHARDS: Final = 64


def shard_of(customer: str) -> int:
    """The shard of a customer, ``0 <= shard < SHARDS``; the same in every process and version."""
    return zlib.crc32(customer.encode()) % SHARDS


@dataclass(frozen=True, slots=True)
class RedisKeys:
    """Key names under one prefix, for example ``wb:{s07}:acct:acme``."""

    prefix: str

    def account(self, customer: str) -> str:
        """Hash: the customer's account."""
        return f"{self._tag(shard_of(customer))}:acct:{customer}"

    def hold(self, customer: str, task_id: str) -> str:
        """Hash: the latest admission of a task.

        Named by the customer too, so that one task id used for two customers of a shard is two
        holds, as it is across shards.
        """
        return f"{self._tag(shard_of(customer))}:hold:{customer}:{task_id}"

    def customer_holds(self, customer: str) -> str:
        """Hash: the customer's open holds, task id to ``period_start_ms|held|sku``.

        What is held is summed from here when an account is loaded again.
        """
        return f"{self._tag(shard_of(customer))}:holds:{customer}"

    def open(self, shard: int) -> str:
        """Sorted set: open holds (``customer|task id``) by the millisecond they expire at."""
        return f"{self._tag(shard)}:open"

    def done(self, customer: str, minute: int) -> str:
        """Set: marks of the tasks of leased SKUs that are settled, metered in one minute.

        A minute each, so that none becomes so large that its end of life holds the server up.
        """
        return f"{self._tag(shard_of(customer))}:done:{customer}:{minute}"

    def out(self, shard: int) -> str:
        """Stream: the outbox, usage events not yet confirmed by RabbitMQ."""
        return f"{self._tag(shard)}:out"

    def born(self, shard: int) -> str:
        """String: the millisecond at which the shard was first seen, after a loss of data again."""
        return f"{self._tag(shard)}:born"

    def unreadable(self, shard: int) -> str:
        """Stream: entries of the outbox that are no event."""
        return f"{self.out(shard)}:bad"

    def claim(self, shard: int) -> str:
        """String: the relay that reads the shard's outbox."""
        return f"{self.out(shard)}:lease"

    def shard_marker(self, shard: int) -> str:
        """String: names this life of the shard's data, where each node of a cluster has its own."""
        return f"{self.out(shard)}:marker"

    @property
    def marker(self) -> str:
        """String: names this life of the data, gone when the data goes."""
        return f"{self.prefix}:relay:marker"

    def outbox_keys(self) -> list[str]:
        """The outboxes of all shards, in order of the shard."""
        return [self.out(shard) for shard in range(SHARDS)]

    def _tag(self, shard: int) -> str:
        return f"{self.prefix}:{{s{shard:02d}}}"


def split_member(member: str) -> tuple[str, str]:
    """The customer and task id of a member of ``RedisKeys.open``: no customer's id has a ``|``."""
    customer, _, task_id = member.partition("|")
    return customer, task_id
