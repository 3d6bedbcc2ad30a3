r"""What a seal covers of a row: every column, in one form that never changes. Pure.

Form 1 is one JSON object with the columns of wire schema 1, the fingerprint, ``logged_at`` and
``"form": 1``:

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

import msgspec
import orjson

from billing.core.event_columns import FIELD_OF, NAMES
from billing.core.usage_event import ADDED_IN

FORM: Final = 1
COLUMNS: Final = NAMES
"""Every column of a row."""
_OF_FORM: Final = tuple(name for name in COLUMNS if FIELD_OF.get(name) not in ADDED_IN)
_LOGGED_AT: Final = "logged_at"
_INSTANTS: Final = ("started_at", "finished_at")
_KEYS: Final = sorted((*_OF_FORM, "form"))
_BEFORE: Final = tuple(_KEYS[: _KEYS.index(_LOGGED_AT)])
_AFTER: Final = tuple(_KEYS[_KEYS.index(_LOGGED_AT) + 1 :])
_OPTIONS: Final = orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z
_LEAF: Final = b"\x00"
_BETWEEN: Final = b',"logged_at":'
# Encoding a Struct takes a third of what sorting a dictionary's keys does. Where logged_at belongs
# stands a byte that JSON cannot have.
_NUL: Final = b"\x00"
_GAP: Final = msgspec.Raw(_NUL)
_Form: Final = msgspec.defstruct("_Form", [(name, Any) for name in _KEYS], gc=False)
_said: Final = attrgetter(*(FIELD_OF[name] for name in _KEYS if name in FIELD_OF))
_HEX_AT: Final = _KEYS.index("fingerprint")
_FORM_AT: Final = _KEYS.index("form") - 1
_LOGGED_AT_AT: Final = _KEYS.index(_LOGGED_AT) - 2
_encode: Final = msgspec.json.encode


class Unlogged(NamedTuple):
    """A row in form 1 but for the value of ``logged_at``: what stands before it and behind it.

    Only the transaction that logs a batch knows that value; all the rest is told beforehand.
    """

    before: bytes
    after: bytes


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
    return Unlogged(
        orjson.dumps({name: known[name] for name in _BEFORE}, option=_OPTIONS)[:-1] + _BETWEEN,
        b"," + orjson.dumps({name: known[name] for name in _AFTER}, option=_OPTIONS)[1:],
    )


def unlogged_of_event(event: Any, fingerprint: bytes) -> Unlogged:  # noqa: ANN401 - read from JSON
    """The same of an event about to be logged.

    Args:
        event: With the attributes of an event: the id and the outcome as texts, ``dimensions`` as
            canonical JSON, instants in UTC.
        fingerprint: Of ``billing.core.usage_event.fingerprint_of``.
    """
    said = _said(event)
    digest = fingerprint.hex()
    text = _encode(
        _Form(
            *said[:_HEX_AT],
            digest,
            *said[_HEX_AT:_FORM_AT],
            FORM,
            *said[_FORM_AT:_LOGGED_AT_AT],
            _GAP,
            *said[_LOGGED_AT_AT:],
        )
    )
    before, _, after = text.partition(_NUL)
    return Unlogged(before, after)


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
