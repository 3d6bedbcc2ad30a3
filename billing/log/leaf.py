r"""What a seal covers of a row: every column, in one form that never changes. Pure.

Form 1 is one JSON object with the keys of ``COLUMNS`` and ``"form": 1``:

- keys, those of ``dimensions`` too, in the order of their code points, no spaces, UTF-8; of the
  characters only ``"``, ``\`` and those below U+0020 are escaped (``\b \t \n \f \r``, else
  ``\u001f`` in lower case);
- the id as a UUID in lower case, the fingerprint in hexadecimal, instants in UTC as
  ``2026-11-21T14:47:36.123456Z``, without the fraction where it is zero; absent values are null.

In Python: ``json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()``.
A column that is added later begins another form: rows sealed under this one keep it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from operator import attrgetter, itemgetter
from typing import Any, Final

import orjson

from billing.usage.event import UsageEvent

FORM: Final = 1
COLUMNS: Final = (
    "id",
    "customer_id",
    "sku_id",
    "line",
    "outcome",
    "reason",
    "quantity",
    "amount_microcredits",
    "shortfall_microcredits",
    "held_microcredits",
    "cost_micros",
    "currency",
    "subject",
    "dimensions",
    "task_id",
    "task_name",
    "root_id",
    "parent_id",
    "group_id",
    "attempt",
    "worker",
    "degraded",
    "quota_epoch",
    "started_at",
    "finished_at",
    "fingerprint",
    "logged_at",
)
_VALUES: Final = itemgetter(*COLUMNS)
_INSTANTS: Final = ("started_at", "finished_at", "logged_at")
_OPTIONS: Final = orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z
_LEAF: Final = b"\x00"


def canonical(row: Mapping[str, Any]) -> bytes:
    """A row in form 1.

    Args:
        row: Values by the names of ``COLUMNS``, as the driver gives them (an archive's reader gives
            the same); other names are left out.
    """
    known: dict[str, Any] = dict(zip(COLUMNS, _VALUES(row), strict=True))
    for name in _INSTANTS:
        # A session of PostgreSQL may have any time zone.
        if known[name] is not None and known[name].tzinfo is not UTC:
            known[name] = known[name].astimezone(UTC)
    known["fingerprint"] = bytes(known["fingerprint"]).hex()
    known["form"] = FORM
    return orjson.dumps(known, option=_OPTIONS)


def leaf_of(row: Mapping[str, Any]) -> bytes:
    """The leaf of a row: what ``billing.log.merkle.leaf_hash`` makes of its canonical form."""
    return sha256(_LEAF + canonical(row)).digest()


def document_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row in form 1 as a JSON document, to be handed out with a proof."""
    document: dict[str, Any] = orjson.loads(canonical(row))
    return document


def row_of(event: UsageEvent, fingerprint: bytes, logged_at: datetime) -> dict[str, Any]:
    """The row that an event becomes.

    Args:
        event: A logged event.
        fingerprint: Of ``UsageEvent.fingerprint``.
        logged_at: When PostgreSQL got it: its transaction's ``now()``.
    """
    return dict(zip(_AS_EVENT, _OF_EVENT(event), strict=True)) | {
        "customer_id": event.customer,
        "sku_id": event.sku,
        "outcome": event.outcome.value,
        "fingerprint": fingerprint,
        "logged_at": logged_at,
    }


_AS_EVENT: Final = tuple(
    name
    for name in COLUMNS
    if name not in {"customer_id", "sku_id", "outcome", "fingerprint", "logged_at"}
)
_OF_EVENT: Final = attrgetter(*_AS_EVENT)
