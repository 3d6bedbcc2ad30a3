"""Manifests: what a batch has logged, told by the application that logged it.

A manifest is written in the transaction that inserts its rows, so there is one exactly if there are
the rows, however long that transaction takes: no clock and no order of commits says which rows a
seal covers. A row that somebody puts into the table by hand is in no manifest, and so in no seal.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.audit.seal_chain import Leaves
from billing.core.row_hash import instant_of, leaf_at
from billing.usage_log.candidate import Candidate, hour_at

_NOW: Final = sa.text("SELECT now()")
_WRITE: Final = sa.text(
    "INSERT INTO log_manifests (hour, rows, ids, hashes) VALUES (:hour, :rows, :ids, :hashes)"
)


def write_manifests(connection: Connection, logged: Collection[Candidate]) -> None:
    """Write down what this transaction has logged, one manifest per hour of usage.

    Args:
        connection: The transaction that inserted them.
        logged: Those that the insert returned, and no others.
    """
    if not logged:
        return
    # The default of logged_at, which is the same for a whole transaction.
    logged_at = connection.execute(_NOW).scalar_one()
    manifests = manifests_of(logged, logged_at)
    connection.execute(
        _WRITE,
        [
            {"hour": hour, "rows": len(leaves), "ids": leaves.ids, "hashes": leaves.hashes}
            for hour, leaves in manifests.items()
        ],
    )


def manifests_of(logged: Collection[Candidate], logged_at: datetime) -> dict[datetime, Leaves]:
    """Ids and leaves by hour of usage, in the order of the ids.

    Args:
        logged: Events that became rows.
        logged_at: When.
    """
    hours: defaultdict[int, list[tuple[bytes, bytes]]] = defaultdict(list)
    instant = instant_of(logged_at)
    for row in logged:
        hours[row.hour].append((row.key, leaf_at(instant, row.around)))
    return {hour_at(hour): _listed(sorted(records)) for hour, records in sorted(hours.items())}


def _listed(records: list[tuple[bytes, bytes]]) -> Leaves:
    ids, hashes = zip(*records, strict=True)
    return Leaves(None, b"".join(ids), b"".join(hashes))
