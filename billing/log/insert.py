"""The insert into the log: by COPY, or by one statement that is bisected where it is refused.

COPY takes about three quarters of what INSERT … ON CONFLICT does, but knows only all or nothing. A
batch is therefore first compared with the log, and only what is not in it is copied. What another
consumer logs in between, and what the database refuses, makes COPY fail; the batch then begins
anew, and the statement says row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Final

import orjson
import psycopg
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from billing.log import rows
from billing.log.candidate import Candidate
from billing.log.driver import driver_cursor
from billing.log.screen import Dead, dead
from billing.usage.event import DeadReason, UsageEvent

# Columns of the log with the type of the array each is sent in. JSON is sent as text: an array of
# jsonb would be escaped twice.
_COLUMNS: Final = {
    "id": "uuid",
    "customer_id": "text",
    "sku_id": "text",
    "line": "text",
    "outcome": "text",
    "reason": "text",
    "quantity": "bigint",
    "amount_microcredits": "bigint",
    "shortfall_microcredits": "bigint",
    "held_microcredits": "bigint",
    "cost_micros": "bigint",
    "currency": "text",
    "subject": "text",
    "dimensions": "text",
    "task_id": "text",
    "task_name": "text",
    "root_id": "text",
    "parent_id": "text",
    "group_id": "text",
    "attempt": "integer",
    "worker": "text",
    "degraded": "boolean",
    "quota_epoch": "bigint",
    "started_at": "timestamptz",
    "finished_at": "timestamptz",
    "fingerprint": "bytea",
}
_VALUES: Final = ", ".join(f"{name}::jsonb" if name == "dimensions" else name for name in _COLUMNS)
# In the order of the ids: two consumers with the same duplicates then wait, and never in a circle.
_INSERT: Final = f"""
    INSERT INTO usage_events ({", ".join(_COLUMNS)})
    SELECT {_VALUES}
    FROM unnest({", ".join(f"%({name})s::{kind}[]" for name, kind in _COLUMNS.items())})
        AS event ({", ".join(_COLUMNS)})
    ORDER BY id
    ON CONFLICT (id) DO NOTHING
    RETURNING uuid_send(id)
"""  # noqa: S608 - made of the names above only
_COPY: Final = f"COPY usage_events ({', '.join(rows.COLUMNS)}) FROM STDIN (FORMAT binary)"

_NO_PARTITION: Final = (
    "run: billing migrate (for a month that was archived: billing restore), then replay"
)
_DATA_ERRORS: Final = frozenset({"22", "23", "54"})
"""SQLSTATE classes that are the fault of a row: data exception, constraint, a limit passed."""

_TAKEN: Final = "23505"
_BATCHES_WITHOUT_COPY: Final = 50
"""Where one id came to two consumers at once, more will: each failed COPY leaves dead rows."""


class CopyRefused(Exception):  # noqa: N818 - an event between two tries, not a fault
    """COPY found a row that cannot be stored; roll back, and say row by row which."""


class Inserter:
    """Inserts batch after batch, by COPY wherever that is worth trying."""

    def __init__(self) -> None:
        self._without_copy = 0

    def insert(
        self, connection: Connection, candidates: Sequence[Candidate], *, by_copy: bool
    ) -> tuple[Sequence[Candidate], list[Dead]]:
        """Log what is new; find the rows that the database refuses, and log their neighbours.

        Args:
            connection: In a transaction.
            candidates: At most one per id; the log had none of them a moment ago.
            by_copy: Whether COPY may be tried.

        Returns:
            Those that were new, and the dead letters of those refused. The others were there.

        Raises:
            CopyRefused: The transaction has to be rolled back, and tried without COPY.
            DBAPIError: Anything that is not the fault of a row.
        """
        if not candidates:
            return [], []
        # Ids in one order: two consumers with the same ones then wait, and never in a circle.
        ordered = sorted(candidates, key=itemgetter(0))
        found = [candidate.row for candidate in ordered if candidate.row is not None]
        if not by_copy or len(found) < len(ordered) or self._without_copy:
            self._without_copy = max(0, self._without_copy - 1)
            keys, refused = _insert(connection, ordered)
            return [candidate for candidate in ordered if candidate.key in keys], refused
        try:
            with driver_cursor(connection) as cursor, cursor.copy(_COPY) as copy:
                copy.write(b"".join((rows.HEADER, *found, rows.TRAILER)))
        except DBAPIError as error:
            if not is_fault_of_a_row(error):
                raise
            if getattr(error.orig, "sqlstate", None) == _TAKEN:
                self._without_copy = _BATCHES_WITHOUT_COPY
            raise CopyRefused from error
        return ordered, []


def _insert(connection: Connection, ordered: Sequence[Candidate]) -> tuple[set[bytes], list[Dead]]:
    try:
        with connection.begin_nested():
            found = connection.exec_driver_sql(_INSERT, _arrays(ordered))
            return {bytes(key) for key in found.scalars()}, []
    except DBAPIError as error:
        if not is_fault_of_a_row(error):
            raise
        if len(ordered) == 1:
            return set(), [dead(DeadReason.REFUSED_BY_DATABASE, _told(error), ordered[0].body)]
    middle = len(ordered) // 2
    first, refused_first = _insert(connection, ordered[:middle])
    second, refused_second = _insert(connection, ordered[middle:])
    return first | second, refused_first + refused_second


def is_fault_of_a_row(error: DBAPIError) -> bool:
    """Whether another try with the same rows must fail in the same way."""
    original = error.orig
    if not isinstance(original, psycopg.Error):
        return False
    if original.sqlstate is None:
        return isinstance(original, psycopg.DataError)
    return original.sqlstate[:2] in _DATA_ERRORS


def _told(error: DBAPIError) -> str:
    original = error.orig
    if not isinstance(original, psycopg.Error):
        return str(original)[:500]
    text = f"{original.sqlstate}: {original.diag.message_primary or original}"[:500]
    missing = original.sqlstate == "23514" and original.diag.constraint_name is None
    return f"{text}; {_NO_PARTITION}" if missing else text


def _arrays(candidates: Sequence[Candidate]) -> dict[str, list[Any]]:
    values = (_values(candidate.event, candidate.fingerprint) for candidate in candidates)
    columns = zip(*values, strict=True)
    return {name: list(column) for name, column in zip(_COLUMNS, columns, strict=True)}


def _values(event: UsageEvent, fingerprint: bytes) -> tuple[object, ...]:
    return (
        event.id,
        event.customer,
        event.sku,
        event.line,
        event.outcome.value,
        event.reason,
        event.quantity,
        event.amount_microcredits,
        event.shortfall_microcredits,
        event.held_microcredits,
        event.cost_micros,
        event.currency,
        event.subject,
        orjson.dumps(event.dimensions, option=orjson.OPT_SORT_KEYS).decode(),
        event.task_id,
        event.task_name,
        event.root_id,
        event.parent_id,
        event.group_id,
        event.attempt,
        event.worker,
        event.degraded,
        event.quota_epoch,
        event.started_at,
        event.finished_at,
        fingerprint,
    )
