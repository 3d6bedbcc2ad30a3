"""The fence between the log and the balances that Redis keeps (``docs/architecture.md``).

A rebuild takes a customer's fence row exclusively, raises its epoch and reads the log's totals. A
batch takes the same row shared, so it commits either before the rebuild, which then counts it, or
after, and then sees the new epoch: what it adds is *late*, unless the balance of this very epoch
counted it already.

The same fact may also be told twice, under two epochs: published directly while Redis was away, and
then settled in Redis by a run of the task that came back. The log drops the second telling, but the
balance has counted it. Such an amount is taken out of what is late, once: ``quota_recounts``
remembers it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import groupby
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection


class FenceMoved(Exception):  # noqa: N818 - an event between two readings, not a fault
    """A rebuild came between seeing the epochs and locking them; roll back, read, try again."""


class FenceNeeded(Exception):  # noqa: N818 - found out on the way, not a fault
    """Only now it shows that a fence has to change; roll back and take them all for update."""


_READ = sa.text("SELECT customer_id, epoch FROM quota_fences WHERE customer_id = ANY(:customers)")
_MAKE = sa.text(
    """
    INSERT INTO quota_fences (customer_id)
    SELECT unnest(CAST(:customers AS text[])) ORDER BY 1
    ON CONFLICT (customer_id) DO NOTHING
    """
)
# COLLATE "C" is the order of Python's sorted(): groups and the rows within them are in one order.
_LOCK = """
    SELECT customer_id, epoch FROM quota_fences WHERE customer_id = ANY(:customers)
    ORDER BY customer_id COLLATE "C" FOR {strength}
"""
_SHARE, _UPDATE = (sa.text(_LOCK.format(strength=strength)) for strength in ("SHARE", "UPDATE"))
_RECOUNT = sa.text(
    """
    INSERT INTO quota_recounts (customer_id, event_id, epoch, amount_microcredits)
    SELECT * FROM unnest(
        CAST(:customers AS text[]), CAST(:ids AS uuid[]), CAST(:epochs AS bigint[]),
        CAST(:amounts AS bigint[])
    ) AS again (customer_id, event_id, epoch, amount)
    ON CONFLICT DO NOTHING
    RETURNING customer_id, amount_microcredits
    """
)
_ADD_LATE = sa.text(
    """
    UPDATE quota_fences
    SET late_microcredits = late_microcredits + late.amount, version = version + 1
    FROM unnest(CAST(:customers AS text[]), CAST(:amounts AS numeric[]))
        AS late (customer_id, amount)
    WHERE quota_fences.customer_id = late.customer_id
    """
)


def lock_fences(
    connection: Connection,
    charged: Mapping[str, Collection[int]],
    last_seen: Mapping[str, int] | None = None,
    *,
    exclusive: bool = False,
) -> dict[str, int]:
    """Lock the fences of a batch's customers, in their order, until the transaction ends.

    Args:
        connection: In a READ COMMITTED transaction.
        charged: Per customer of the batch, the epochs of its events that cost something.
        last_seen: Epochs as some earlier transaction found them. If it has all of them they are not
            read again: a fence that has moved since is noticed as one that moves now.
        exclusive: Take every fence for update; no rebuild can then make ``FenceMoved`` of it.

    Returns:
        The epoch of each customer.

    Raises:
        FenceMoved: A fence that was only shared has another epoch than was read before.
    """
    customers = sorted(charged)
    if not customers:
        return {}
    epochs = last_seen or {}
    if not all(name in epochs for name in customers):
        epochs = _epochs(connection, customers)

    def late(customer: str) -> bool:
        return any(epoch != epochs[customer] for epoch in charged[customer])

    locked: dict[str, int] = {}
    for for_update, group in groupby(customers, key=lambda name: exclusive or late(name)):
        names = list(group)
        rows = connection.execute(_UPDATE if for_update else _SHARE, {"customers": names})
        locked.update((name, epoch) for name, epoch in rows)
        if not for_update and any(locked[name] != epochs[name] for name in names if charged[name]):
            raise FenceMoved
    return locked


def recount(
    connection: Connection, tellings: Iterable[tuple[str, UUID, int, int]]
) -> list[tuple[str, int]]:
    """Remember amounts that a balance counted and the log has from another telling.

    Args:
        connection: The transaction that holds the customers' fences for update.
        tellings: Customer, event id, epoch of the balance, microcredits; a repeat is dropped.

    Returns:
        Customer and microcredits of those not remembered before.
    """
    columns = zip(*sorted(set(tellings)), strict=True)
    names = ("customers", "ids", "epochs", "amounts")
    parameters = {name: list(column) for name, column in zip(names, columns, strict=True)}
    return [(name, amount) for name, amount in connection.execute(_RECOUNT, parameters)]


def add_late(connection: Connection, amounts: Mapping[str, int]) -> None:
    """Add what the balances of the present epochs have not counted; the fences are held for update.

    Args:
        connection: The transaction that holds them.
        amounts: Microcredits by customer; below zero where a balance counted more than the log.
    """
    if amounts:
        customers = sorted(amounts)
        connection.execute(
            _ADD_LATE, {"customers": customers, "amounts": [amounts[name] for name in customers]}
        )


def _epochs(connection: Connection, customers: list[str]) -> dict[str, int]:
    found = _read(connection, customers)
    missing = [name for name in customers if name not in found]
    if missing:
        connection.execute(_MAKE, {"customers": missing})
        found.update(_read(connection, missing))
    return found


def _read(connection: Connection, customers: list[str]) -> dict[str, int]:
    rows = connection.execute(_READ, {"customers": customers})
    return {row.customer_id: row.epoch for row in rows}
