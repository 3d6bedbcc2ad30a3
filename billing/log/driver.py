"""psycopg underneath SQLAlchemy, for what only the driver can do: COPY, and arrays of raw fields.

Both go through the connection's own transaction, and what psycopg raises comes out as SQLAlchemy's
errors, so that whoever calls need not know of two kinds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from struct import Struct
from typing import Any, ClassVar, Final, cast

import psycopg
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

_HEADER: Final = Struct(">iiIii")
_DIMENSIONS, _NO_NULLS, _LOWER_BOUND = 1, 0, 1


class Fields:
    """A one-dimensional array for PostgreSQL, of elements that are encoded already.

    Args:
        elements: Each with its width before it, as a field of COPY's binary format; none is NULL.
    """

    element: ClassVar[str]
    __slots__ = ("elements",)

    def __init__(self, elements: Sequence[bytes]) -> None:
        self.elements = elements


class Uuids(Fields):
    """``uuid[]``."""

    element = "uuid"


class Texts(Fields):
    """``text[]``."""

    element = "text"


class Dates(Fields):
    """``date[]``."""

    element = "date"


class Instants(Fields):
    """``timestamptz[]``."""

    element = "timestamptz"


class _FieldsDumper(Dumper):
    format = Format.BINARY

    def __init__(self, cls: type[Fields], context: AdaptContext | None = None) -> None:
        super().__init__(cls, context)
        found = psycopg.adapters.types[cls.element]
        self.oid = found.array_oid
        self._element_oid = found.oid

    def dump(self, obj: Fields) -> Buffer:
        header = _HEADER.pack(
            _DIMENSIONS, _NO_NULLS, self._element_oid, len(obj.elements), _LOWER_BOUND
        )
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
            for kind in (Uuids, Texts, Dates, Instants):
                cursor.adapters.register_dumper(kind, _FieldsDumper)
            yield cursor
    except psycopg.Error as error:
        raise DBAPIError.instance(
            None, None, error, psycopg.Error, connection_invalidated=driver.closed
        ) from error
