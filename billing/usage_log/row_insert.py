"""The insert into the log: by COPY, or by one statement that is bisected where it is refused.

COPY takes about three quarters of what INSERT … ON CONFLICT does, but knows only all or nothing. A
batch is therefore first compared with the log, and only what is not in it is copied. What another
consumer logs in between, and what the database refuses, makes COPY fail; the batch then begins
anew, and the statement says row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Final

import psycopg
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from billing.core.usage_event import DeadReason
from billing.postgres.copy_rows import Fields, driver_cursor
from billing.usage_log.copy_fields import COLUMNS, HEADER, MAX_INT4, TRAILER, fields_of
from billing.usage_log.event_reader import Dead, Row, dead

_NAMES: Final = ", ".join(COLUMNS)
# In the order of the ids: two consumers with the same duplicates then wait, and never in a circle.
_INSERT: Final = f"""
    INSERT INTO usage_events ({_NAMES})
    SELECT {_NAMES} FROM unnest({", ".join(["%s"] * len(COLUMNS))}) AS event ({_NAMES})
    ORDER BY id
    ON CONFLICT (id) DO NOTHING
    RETURNING uuid_send(id)
"""  # noqa: S608 - made of the names above only
_COPY: Final = f"COPY usage_events ({_NAMES}) FROM STDIN (FORMAT binary)"

_NO_PARTITION: Final = (
    "run: billing migrate (for a month that was archived: billing restore), then replay"
)
_DATA_ERRORS: Final = frozenset({"22", "23", "54"})
"""SQLSTATE classes that are the fault of a row: data exception, constraint, a limit passed."""

_TAKEN: Final = "23505"
_BATCHES_WITHOUT_COPY: Final = 10
"""Where one id came to two consumers at once, more will: each failed COPY leaves dead rows, which
so are a tenth of the log at the most."""


class CopyRefused(Exception):  # noqa: N818 - an event between two tries, not a fault
    """COPY found a row that cannot be stored; roll back, and say row by row which."""


class RowInsert:
    """Inserts batch after batch, by COPY wherever that is worth trying."""

    def __init__(self) -> None:
        self._without_copy = 0

    def insert(
        self, connection: Connection, rows: Sequence[Row], *, by_copy: bool
    ) -> tuple[Sequence[Row], list[Dead]]:
        """Log what is new; find the rows that the database refuses, and log their neighbours.

        Args:
            connection: In a transaction.
            rows: At most one per id; the log had none of them a moment ago.
            by_copy: Whether COPY may be tried.

        Returns:
            Those that were new, and the dead letters of those refused. The others were there.

        Raises:
            CopyRefused: The transaction has to be rolled back, and tried without COPY.
            DBAPIError: Anything that is not the fault of a row.
        """
        ordered = sorted((row for row in rows if row.copied), key=attrgetter("key"))
        refused = [_does_not_fit(row) for row in rows if not row.copied]
        if not ordered:
            return [], refused
        if self._without_copy or not by_copy:
            self._without_copy = max(0, self._without_copy - 1)
            keys, more = _insert(connection, ordered)
            return [row for row in ordered if row.key in keys], refused + more
        try:
            with driver_cursor(connection) as cursor, cursor.copy(_COPY) as copy:
                copy.write(b"".join((HEADER, *[row.copied or b"" for row in ordered], TRAILER)))
        except DBAPIError as error:
            if not _is_fault_of_a_row(error):
                raise
            if getattr(error.orig, "sqlstate", None) == _TAKEN:
                self._without_copy = _BATCHES_WITHOUT_COPY
            raise CopyRefused from error
        return ordered, refused


def _insert(connection: Connection, ordered: Sequence[Row]) -> tuple[set[bytes], list[Dead]]:
    columns = zip(*(fields_of(row.copied or b"") for row in ordered), strict=True)
    arrays = [Fields(kind, column) for kind, column in zip(COLUMNS.values(), columns, strict=True)]
    try:
        with connection.begin_nested(), driver_cursor(connection) as cursor:
            return {key for (key,) in cursor.execute(_INSERT, arrays)}, []
    except DBAPIError as error:
        if not _is_fault_of_a_row(error):
            raise
        if len(ordered) == 1:
            return set(), [dead(DeadReason.REFUSED_BY_DATABASE, _reason(error), ordered[0].body)]
    middle = len(ordered) // 2
    first, refused_first = _insert(connection, ordered[:middle])
    second, refused_second = _insert(connection, ordered[middle:])
    return first | second, refused_first + refused_second


def _does_not_fit(row: Row) -> Dead:
    detail = f"attempt={row.event.attempt}; its column holds at most {MAX_INT4}"
    return dead(DeadReason.REFUSED_BY_DATABASE, detail, row.body)


def _is_fault_of_a_row(error: DBAPIError) -> bool:
    """Whether another try with the same rows must fail in the same way."""
    original = error.orig
    if not isinstance(original, psycopg.Error):
        return False
    if original.sqlstate is None:
        return isinstance(original, psycopg.DataError)
    return original.sqlstate[:2] in _DATA_ERRORS


def _reason(error: DBAPIError) -> str:
    original = error.orig
    if not isinstance(original, psycopg.Error):
        return str(original)[:500]
    text = f"{original.sqlstate}: {original.diag.message_primary or original}"[:500]
    missing = original.sqlstate == "23514" and original.diag.constraint_name is None
    return f"{text}; {_NO_PARTITION}" if missing else text
