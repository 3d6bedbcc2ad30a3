"""Rows of the log in the binary format of COPY, and its fields for arrays.

See https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format". The columns are those of
``billing.core.event_columns``, in an order of this module's own: columns of a fixed width stand
together, so that one ``pack`` makes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from operator import attrgetter
from struct import Struct
from struct import error as StructError  # noqa: N812 - a class
from typing import Any, Final

from billing.core.event_columns import FINGERPRINT, OF_EVENT, EventColumn
from billing.postgres.copy_rows import Fields

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER: Final = b"\xff\xff"
NULL: Final = b"\xff\xff\xff\xff"
MAX_INT4: Final = 2**31 - 1

_WIDTH: Final = Struct(">i")
_width: Final = _WIDTH.pack
_UUID_WIDTH: Final = _width(16)
_instant: Final = Struct(">iq").pack
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""PostgreSQL counts microseconds from here."""
_DAY: Final = 86_400_000_000
_SECOND: Final = 1_000_000
_JSONB_VERSION: Final = b"\x01"
_MOST_LABEL_BYTES: Final = 16_777_216

_FIGURES: Final = {"int8": ("iq", 8), "int4": ("ii", 4), "bool": ("i?", 1)}
"""Formats of a figure with its width before it, and the width."""


def _of(*kinds: str, repeats: bool | None = None) -> list[EventColumn]:
    return [
        column
        for column in OF_EVENT
        if column.kind in kinds and (repeats is None or column.repeats is repeats)
    ]


_figures: Final = _of(*_FIGURES)
_labels: Final = _of("text", repeats=True)
_texts: Final = _of("text", repeats=False)
_instants: Final = _of("timestamptz")
_ids: Final = [*_of("uuid"), FINGERPRINT]
COLUMNS: Final = {
    column.name: column.kind
    for column in (*_ids, *_figures, *_labels, *_texts, *_instants, *_of("jsonb"))
}
"""Columns of the log, in the order of a row's fields, with their types."""

_BEFORE: Final = len(COLUMNS).to_bytes(2, "big") + _UUID_WIDTH
_pack: Final = Struct(">" + "".join(_FIGURES[column.kind][0] for column in _figures)).pack
_WIDTHS: Final = [part for column in _figures for part in (_FIGURES[column.kind][1], 0)]


def _getter(columns: list[EventColumn]) -> attrgetter[tuple[Any, ...]]:
    return attrgetter(*(column.field for column in columns))


_figures_of, _labels_of, _texts_of, _instants_of = map(
    _getter, (_figures, _labels, _texts, _instants)
)


class Labels(dict[tuple[str | None, ...], bytes]):
    """Fields of the texts that come again and again together: customer, SKU, line, worker."""

    def __init__(self) -> None:
        super().__init__()
        self._bytes = 0

    def __missing__(self, values: tuple[str | None, ...]) -> bytes:
        """The fields of new ones, kept up to a limit."""
        fields = b"".join(map(optional, values))
        self._bytes += 2 * len(fields)
        if self._bytes > _MOST_LABEL_BYTES:
            self.clear()
            self._bytes = 2 * len(fields)
        self[values] = fields
        return fields


def row_of(event: Any, key: bytes, fingerprint: bytes, labels: Labels) -> bytes | None:  # noqa: ANN401 - as read
    """The row of an event; None where a figure does not fit its column.

    Args:
        event: As of ``billing.core.usage_event_json.decode``, with instants as such.
        key: Its id in 16 bytes.
        fingerprint: Its own, 16 bytes.
        labels: Kept from call to call.
    """
    figures = _WIDTHS[:]
    figures[1::2] = _figures_of(event)
    try:
        packed = _pack(*figures)
    except StructError:
        return None
    parts = [_BEFORE, key, _UUID_WIDTH, fingerprint, packed, labels[_labels_of(event)]]
    for value in _texts_of(event):
        if value is None:
            parts.append(NULL)
        else:
            encoded = value.encode()
            parts += (_width(len(encoded)), encoded)
    parts += map(instant, _instants_of(event))
    dimensions = bytes(event.dimensions)
    parts += (_width(len(dimensions) + 1), _JSONB_VERSION, dimensions)
    return b"".join(parts)


def fields_of(row: bytes) -> list[bytes]:
    """The fields of a row, each with its width before it."""
    found = []
    start, end = 2, len(row)
    while start < end:
        (width,) = _WIDTH.unpack_from(row, start)
        behind = start + _WIDTH.size + max(width, 0)
        found.append(row[start:behind])
        start = behind
    return found


def text(value: str) -> bytes:
    """A text as a field."""
    encoded = value.encode()
    return _width(len(encoded)) + encoded


def optional(value: str | None) -> bytes:
    """A text that may be missing, as a field."""
    return NULL if value is None else text(value)


def instant(value: datetime | None) -> bytes:
    """An instant as a field."""
    if value is None:
        return NULL
    since = value - _EPOCH
    return _instant(8, since.days * _DAY + since.seconds * _SECOND + since.microseconds)


def texts_array(values: Iterable[str]) -> Fields:
    """Texts as an array."""
    return Fields("text", [text(value) for value in values])


def ids_array(keys: Iterable[bytes]) -> Fields:
    """Ids of 16 bytes as an array."""
    return Fields("uuid", [_UUID_WIDTH + key for key in keys])
