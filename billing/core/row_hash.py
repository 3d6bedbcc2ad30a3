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
from operator import attrgetter
from typing import Any, Final, NamedTuple

import orjson

from billing.core.usage_event import UsageEvent

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
_LOGGED_AT: Final = "logged_at"
_INSTANTS: Final = ("started_at", "finished_at")
_KEYS: Final = sorted((*COLUMNS, "form"))
_BEFORE: Final = tuple(_KEYS[: _KEYS.index(_LOGGED_AT)])
_AFTER: Final = tuple(_KEYS[_KEYS.index(_LOGGED_AT) + 1 :])
_OPTIONS: Final = orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z
_LEAF: Final = b"\x00"


class Unlogged(NamedTuple):
    """A row in form 1 but for the value of ``logged_at``: what stands before it and behind it.

    Only the transaction that logs a batch knows that value; all the rest is told beforehand.
    """

    before: bytes
    after: bytes


def joined(before: Mapping[str, Any], after: Mapping[str, Any]) -> Unlogged:
    """The form of what is said already.

    Args:
        before: All that stands before ``logged_at``, ``form`` included; the fingerprint in
            hexadecimal, instants in UTC.
        after: All that stands behind it.
    """
    return Unlogged(
        orjson.dumps(before, option=_OPTIONS)[:-1] + b',"logged_at":',
        b"," + orjson.dumps(after, option=_OPTIONS)[1:],
    )


def unlogged_of(row: Mapping[str, Any]) -> Unlogged:
    """A row in form 1 but for ``logged_at``.

    Args:
        row: As of ``canonical``; ``logged_at`` may be missing.
    """
    known = {**row, "fingerprint": bytes(row["fingerprint"]).hex(), "form": FORM}
    for name in _INSTANTS:
        # A session of PostgreSQL may have any time zone.
        if known[name] is not None and known[name].tzinfo is not UTC:
            known[name] = known[name].astimezone(UTC)
    return joined({name: known[name] for name in _BEFORE}, {name: known[name] for name in _AFTER})


def instant_of(logged_at: datetime) -> bytes:
    """The value of ``logged_at`` in form 1."""
    return orjson.dumps(logged_at.astimezone(UTC), option=_OPTIONS)


def leaf_at(instant: bytes, row: Unlogged) -> bytes:
    """The leaf of a row that is logged at an instant.

    Args:
        instant: Of ``instant_of``.
        row: All the rest.
    """
    return sha256(b"".join((_LEAF, row.before, instant, row.after))).digest()


def canonical(row: Mapping[str, Any]) -> bytes:
    """A row in form 1.

    Args:
        row: Values by the names of ``COLUMNS``, as the driver gives them (an archive's reader gives
            the same); other names are left out.
    """
    before, after = unlogged_of(row)
    return b"".join((before, instant_of(row[_LOGGED_AT]), after))


def leaf_of(row: Mapping[str, Any]) -> bytes:
    """Hash a row into its leaf of the Merkle tree: SHA-256 of 0x00 and the canonical form."""
    return leaf_at(instant_of(row[_LOGGED_AT]), unlogged_of(row))


def document_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row in form 1 as a JSON document, to be handed out with a proof."""
    document: dict[str, Any] = orjson.loads(canonical(row))
    return document


def row_of(event: UsageEvent, fingerprint: bytes) -> dict[str, Any]:
    """The row that an event becomes, but for ``logged_at``.

    Args:
        event: About to be logged.
        fingerprint: Of ``UsageEvent.fingerprint``.
    """
    return dict(zip(_AS_EVENT, _OF_EVENT(event), strict=True)) | {
        "customer_id": event.customer,
        "sku_id": event.sku,
        "outcome": event.outcome.value,
        "fingerprint": fingerprint,
    }


_AS_EVENT: Final = tuple(
    name
    for name in COLUMNS
    if name not in {"customer_id", "sku_id", "outcome", "fingerprint", _LOGGED_AT}
)
_OF_EVENT: Final = attrgetter(*_AS_EVENT)
