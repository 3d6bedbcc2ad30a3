"""The same id again: the same fact told twice, or another fact under its id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.core.event_columns import OF_EVENT
from billing.core.usage_event import IDENTITY, USED, DeadReason
from billing.core.usage_event_json import from_wire
from billing.postgres.copy_rows import driver_cursor
from billing.usage_log.copy_fields import ids_array
from billing.usage_log.event_reader import Dead, Row, dead, storable

_FIND: Final = """
    SELECT uuid_send(id), fingerprint, quota_epoch FROM usage_events WHERE id = ANY(%s)
"""
_COLUMN_OF: Final = {column.field: column.name for column in OF_EVENT}
_COMPARED: Final = {_COLUMN_OF[field]: field for field in (*IDENTITY, *USED)}
_READ: Final = sa.text(
    f"SELECT id, {', '.join(_COMPARED)} FROM usage_events WHERE id = ANY(CAST(:ids AS uuid[]))"  # noqa: S608 - names of ours
)


class Logged(NamedTuple):
    """What a telling is compared with."""

    fingerprint: bytes
    epoch: int


def logged(connection: Connection, keys: Iterable[bytes]) -> dict[bytes, Logged]:
    """Those of some ids that the log has."""
    wanted = ids_array(keys)
    if not wanted.elements:
        return {}
    with driver_cursor(connection) as cursor:
        found = cursor.execute(_FIND, [wanted]).fetchall()
    return {key: Logged(fingerprint, epoch) for key, fingerprint, epoch in found}


def conflicts(connection: Connection, tellings: Sequence[Row]) -> list[Dead]:
    """The dead letters of events whose id the log has with another fingerprint.

    Args:
        connection: The transaction in which that was seen.
        tellings: In any order.
    """
    if not tellings:
        return []
    ids = list({UUID(bytes=telling.key) for telling in tellings})
    found = {row["id"].bytes: row for row in connection.execute(_READ, {"ids": ids}).mappings()}
    return [_conflict(telling, found.get(telling.key)) for telling in tellings]


def out_of_reach(telling: Row) -> Dead:
    """The dead letter of an event whose id is taken by a row that cannot be read.

    Its partition was detached between the insert and the look: it cannot be compared.
    """
    detail = "the id was taken, and its row is out of reach"
    return dead(DeadReason.REFUSED_BY_DATABASE, detail, telling.body)


def _conflict(telling: Row, row: Any) -> Dead:  # noqa: ANN401 - SQLAlchemy's mapping
    if row is None:
        return out_of_reach(telling)
    event = from_wire(telling.body)
    facts = {name: getattr(event, field) for name, field in _COMPARED.items()}
    facts["outcome"] = event.outcome.value
    differ = [
        f"{name} (logged {row[name]!r:.60}, here {fact!r:.60})"
        for name, fact in facts.items()
        if row[name] != fact
    ]
    detail = "logged before with another " + (", ".join(differ) or "fingerprint")
    return dead(DeadReason.CONFLICT, storable(detail), telling.body)
