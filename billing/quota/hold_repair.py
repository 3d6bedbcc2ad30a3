"""Repair of a customer's holds in Redis where a record, a list and a sum no longer agree.

Every verb keeps them together in one step; they part only where somebody deleted or edited a key,
or a server lost some of its data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import redis

from billing.redis.keys import RedisKeys, shard_of, split_member
from billing.redis.scripts import answering, script_text, text

_CHUNK: Final = 100


class HoldFault(StrEnum):
    """How a hold, or the sum of them, disagreed with the rest."""

    ORPHAN = "orphan"
    """It is listed as open and no open hold stands behind it: credits locked away for nobody."""
    UNSWEPT = "unswept"
    """No sweep would have found it: its credits would have been locked away for good."""
    UNCOUNTED = "uncounted"
    """A rebuild of the account would not have counted it."""
    HELD = "held"
    """The sum of what is held was not that of the holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairedHolds:
    """One repair. ``task_id`` is empty for a sum."""

    fault: HoldFault
    customer: str
    task_id: str
    amount_microcredits: int


class HoldRepair:
    """Repairs holds, one atomic step per hundred of them.

    Args:
        client: As for ``RedisQuotaStore``.
        keys: The names of the keys.
    """

    def __init__(self, client: redis.Redis, keys: RedisKeys) -> None:
        self._client = client
        self._keys = keys
        self._script = client.register_script(script_text("repair_holds"))

    def repair(self, customer: str) -> list[RepairedHolds]:
        """Compare every hold of a customer with the lists and the sum, and correct what disagrees.

        Raises:
            QuotaUnavailable: Redis did not answer, or refuses to write; ask again.
        """
        with answering():
            tasks = self._tasks(customer)
            found: list[RepairedHolds] = []
            # At least once, for the sum.
            for start in range(0, max(len(tasks), 1), _CHUNK):
                found += self._repair(customer, tasks[start : start + _CHUNK])
        return found

    def _tasks(self, customer: str) -> list[str]:
        listed = self._client.hkeys(self._keys.customer_holds(customer))
        members: list[Any] = self._client.zrange(self._keys.open(shard_of(customer)), 0, -1)
        named = (split_member(text(member)) for member in members)
        swept = [task for owner, task in named if owner == customer]
        return sorted({text(task) for task in listed} | set(swept))

    def _repair(self, customer: str, tasks: list[str]) -> Iterator[RepairedHolds]:
        keys = [
            self._keys.account(customer),
            self._keys.customer_holds(customer),
            self._keys.open(shard_of(customer)),
            *(self._keys.hold(customer, task) for task in tasks),
        ]
        for what, subject, amount in self._script(keys=keys, args=[customer, *tasks]):
            fault = HoldFault(text(what))
            yield RepairedHolds(
                fault=fault,
                customer=customer,
                task_id="" if fault is HoldFault.HELD else text(subject),
                # Of a sum: how much more is held now than before.
                amount_microcredits=int(amount) - (int(subject) if fault is HoldFault.HELD else 0),
            )
