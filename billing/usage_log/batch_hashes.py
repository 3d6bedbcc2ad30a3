"""Manifests: ids and row hashes of a batch, written by the application that logged it.

A manifest is written in the transaction that inserts its rows, so there is one exactly if there are
the rows, however long that transaction takes: no clock and no order of commits says which rows a
seal covers. A row that somebody puts into the table by hand is in no manifest, and so in no seal.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.core.row_hash import instant_of, leaf_at
from billing.usage_log.distinct_subjects import hour_at
from billing.usage_log.event_reader import Row

_NOW: Final = sa.text("SELECT now()")
_WRITE: Final = sa.text(
    "INSERT INTO log_manifests (hour, rows, ids, hashes) VALUES (:hour, :rows, :ids, :hashes)"
)


def write_manifests(connection: Connection, logged: Collection[Row]) -> None:
    """Write one manifest per hour of usage for what this transaction has logged.

    Args:
        connection: The transaction that inserted them.
        logged: Those that the insert returned, and no others.
    """
    if not logged:
        return
    # The default of logged_at, which is the same for a whole transaction.
    logged_at = connection.execute(_NOW).scalar_one()
    instant = instant_of(logged_at)
    hours: defaultdict[int, list[tuple[bytes, bytes]]] = defaultdict(list)
    for row in logged:
        hours[row.hour].append((row.key, leaf_at(instant, row.unlogged)))
    connection.execute(_WRITE, [_manifest(*hour) for hour in sorted(hours.items())])


def _manifest(hour: int, records: list[tuple[bytes, bytes]]) -> dict[str, object]:
    """Ids and hashes of one hour's rows, in the order of the ids."""
    ids, hashes = zip(*sorted(records), strict=True)
    return {
        "hour": hour_at(hour),
        "rows": len(records),
        "ids": b"".join(ids),
        "hashes": b"".join(hashes),
    }
