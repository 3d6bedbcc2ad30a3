"""Columns of the fulfillment log, made of the event's fields. Pure.

Tables, COPY, row hashes, archives and receipts take their columns from here.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, NamedTuple, get_args, get_type_hints
from uuid import UUID

from billing.core.usage_event import FIELDS, UsageEvent


class EventColumn(NamedTuple):
    """One column.

    Attributes:
        name: In the log.
        field: The event's field; empty for what the log adds.
        kind: PostgreSQL's name of the type.
        nullable: Whether it may have no value.
        repeats: Whether the same few values come again and again.
    """

    name: str
    field: str
    kind: str
    nullable: bool = False
    repeats: bool = False


_RENAMED: Final = {"customer": "customer_id", "sku": "sku_id"}
_NARROW: Final = {"attempt": "int4"}
_KINDS: Final[dict[type, str]] = {
    UUID: "uuid",
    bool: "bool",
    int: "int8",
    datetime: "timestamptz",
    dict: "jsonb",
}


def _column(field: str, hint: Any) -> EventColumn:  # noqa: ANN401 - a type, annotated or not
    parts = get_args(hint)
    nullable = type(None) in parts
    plain = parts[0] if nullable else hint
    meta = getattr(plain, "__metadata__", ())
    bare = getattr(plain, "__origin__", plain)
    kind = _NARROW.get(field) or _KINDS.get(bare, "text")
    repeats = bare is not str or any((each.extra or {}).get("repeats") for each in meta)
    return EventColumn(
        _RENAMED.get(field, field), field, kind, nullable, repeats and kind in {"text", "jsonb"}
    )


_HINTS: Final = get_type_hints(UsageEvent, include_extras=True)
OF_EVENT: Final = tuple(_column(field, _HINTS[field]) for field in FIELDS)
"""One for each field, in their order."""

FINGERPRINT: Final = EventColumn("fingerprint", "", "bytea")
LOGGED_AT: Final = EventColumn("logged_at", "", "timestamptz")
ALL: Final = (*OF_EVENT, FINGERPRINT, LOGGED_AT)
NAMES: Final = tuple(column.name for column in ALL)
FIELD_OF: Final = {column.name: column.field for column in OF_EVENT}
"""Fields by the names of their columns."""
