"""Rows of the log in the binary format of COPY.

See https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format". Columns of a fixed width
stand together, so that one ``pack`` makes them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from struct import Struct
from typing import Final

import orjson

from billing.core.usage_event import UsageEvent

COLUMNS: Final = {
    "customer_id": "text",
    "sku_id": "text",
    "line": "text",
    "outcome": "text",
    "reason": "text",
    "currency": "text",
    "task_name": "text",
    "worker": "text",
    "id": "uuid",
    "fingerprint": "bytea",
    "quantity": "int8",
    "amount_microcredits": "int8",
    "shortfall_microcredits": "int8",
    "held_microcredits": "int8",
    "cost_micros": "int8",
    "quota_epoch": "int8",
    "attempt": "int4",
    "degraded": "bool",
    "started_at": "timestamptz",
    "finished_at": "timestamptz",
    "subject": "text",
    "dimensions": "jsonb",
    "task_id": "text",
    "root_id": "text",
    "parent_id": "text",
    "group_id": "text",
}
"""Columns of the log, in the order of a row's fields, with their types."""

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER: Final = b"\xff\xff"
NULL: Final = b"\xff\xff\xff\xff"

FIELDS: Final = len(COLUMNS).to_bytes(2, "big")
FIGURES: Final = Struct(">i16s i16s iq iq iq iq iq iq ii i?")
"""Each with its width before it: id, fingerprint, the six figures, attempt, degraded."""

INSTANT: Final = Struct(">iq")
EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""PostgreSQL counts microseconds from here."""

MAX_ATTEMPT: Final = 2**31 - 1
WIDTH: Final = Struct(">i")
DAY: Final = 86_400_000_000
SECOND: Final = 1_000_000
_JSONB_VERSION: Final = b"\x01"


def text(value: str) -> bytes:
    """A text as a field."""
    encoded = value.encode()
    return WIDTH.pack(len(encoded)) + encoded


def optional(value: str | None) -> bytes:
    """A text that may be missing, as a field."""
    return NULL if value is None else text(value)


def jsonb(value: dict[str, str]) -> bytes:
    """A JSON object as a field, its names sorted."""
    encoded = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    return WIDTH.pack(len(encoded) + 1) + _JSONB_VERSION + encoded


def instant(value: datetime | None) -> bytes:
    """An instant as a field."""
    return NULL if value is None else INSTANT.pack(8, microseconds(value))


def microseconds(value: datetime) -> int:
    """An instant as PostgreSQL counts."""
    since = value - EPOCH
    return since.days * DAY + since.seconds * SECOND + since.microseconds


def fields_of(row: bytes) -> list[bytes]:
    """The fields of a row, each with its width before it."""
    found = []
    start, end = len(FIELDS), len(row)
    while start < end:
        (width,) = WIDTH.unpack_from(row, start)
        behind = start + WIDTH.size + max(width, 0)
        found.append(row[start:behind])
        start = behind
    return found


def row_of(event: UsageEvent, fingerprint: bytes) -> bytes | None:
    """The row of an event; None where a figure does not fit its column.

    Args:
        event: Valid as ``billing.core.usage_event.from_wire`` sees it.
        fingerprint: Its own.
    """
    if event.attempt > MAX_ATTEMPT:
        return None
    return b"".join(
        (
            FIELDS,
            text(event.customer),
            text(event.sku),
            text(event.line),
            text(event.outcome.value),
            text(event.reason),
            text(event.currency),
            text(event.task_name),
            text(event.worker),
            FIGURES.pack(
                *(16, event.id.bytes, 16, fingerprint),
                *(8, event.quantity, 8, event.amount_microcredits),
                *(8, event.shortfall_microcredits, 8, event.held_microcredits),
                *(8, event.cost_micros, 8, event.quota_epoch),
                *(4, event.attempt, 1, event.degraded),
            ),
            instant(event.started_at),
            instant(event.finished_at),
            optional(event.subject),
            jsonb(event.dimensions),
            text(event.task_id),
            optional(event.root_id),
            optional(event.parent_id),
            optional(event.group_id),
        )
    )
