"""psycopg underneath SQLAlchemy, for what only the driver can do: COPY, and arrays of raw fields.

Both go through the connection's own transaction, and what psycopg raises comes out as SQLAlchemy's
errors, so that whoever calls need not know of two kinds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from struct import Struct
from typing import Any, Final, NamedTuple, Self, cast

import psycopg
from psycopg.abc import Buffer, PyFormat
from psycopg.adapt import Dumper
from psycopg.pq import Format
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

_HEADER: Final = Struct(">iiIii")
_DIMENSIONS, _MAY_HAVE_NULLS, _LOWER_BOUND = 1, 1, 1


class Fields(NamedTuple):
    """A one-dimensional array for PostgreSQL, of elements that are encoded already.

    ``kind`` is the elements' type (``uuid``); each has its width before it, as a field of COPY's
    binary format.
    """

    kind: str
    elements: Sequence[bytes]


class _FieldsDumper(Dumper):
    format = Format.BINARY
    element_oid = 0

    def get_key(self, obj: Fields, _format: PyFormat) -> tuple[type, str]:  # type: ignore[override]
        return self.cls, obj.kind

    def upgrade(self, obj: Fields, _format: PyFormat) -> Self:
        found = psycopg.adapters.types[obj.kind]
        dumper = type(self)(self.cls)
        dumper.oid, dumper.element_oid = found.array_oid, found.oid
        return dumper

    def dump(self, obj: Fields) -> Buffer:
        count = len(obj.elements)
        header = _HEADER.pack(_DIMENSIONS, _MAY_HAVE_NULLS, self.element_oid, count, _LOWER_BOUND)
        return header + b"".join(obj.elements)


@contextmanager
def driver_cursor(connection: Connection) -> Iterator[psycopg.Cursor[Any]]:
    """The driver's cursor on a connection of SQLAlchemy, in the same transaction.

    Raises:
        DBAPIError: What psycopg raised, as SQLAlchemy's ``execute`` would have raised it.
    """
    driver = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    try:
        with driver.cursor(binary=True) as cursor:
            cursor.adapters.register_dumper(Fields, _FieldsDumper)
            yield cursor
    except psycopg.Error as error:
        raise DBAPIError.instance(
            None, None, error, psycopg.Error, connection_invalidated=driver.closed
        ) from error
