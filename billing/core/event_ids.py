"""Event ids: UUIDv7-shaped and derived from the task, so that no server need be asked.

48 bits are the milliseconds of ``metered_at``; the other 74 come from SHA-256 of the task id and
the line. The same task always has the same id, whatever is lost or repeated. The shape is that of
RFC 9562 section 5.7, so ids sort by time and a month of them is one range.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from uuid import UUID

from billing.core.clock import from_ms, to_ms
from billing.core.errors import InvalidValue

_MAX_MS = 2**48
_HOUR_MS = 3_600_000
_RAND_B = (1 << 62) - 1
_VERSION_AND_VARIANT = 0x7 << 76 | 0b10 << 62


def event_id(task_id: str, line: str, metered_at: datetime) -> UUID:
    """Derive the id of one line of a task.

    Args:
        task_id: Celery's task id (any text).
        line: The task's line: its SKU, or one for a denial or a failure; see
            ``billing.core.usage_event``.
        metered_at: The instant stamped at submission; counts to the millisecond.
    """
    return UUID(int=_checked_ms(to_ms(metered_at)) << 80 | low_bits(task_id, line))


def low_bits(task_id: str, line: str) -> int:
    """Derive the lower 80 bits of an event id: all of it but the milliseconds."""
    # The length prefix keeps ("ab", "c") and ("a", "bc") apart.
    digest = hashlib.sha256(f"{len(task_id)}:{task_id}{line}".encode()).digest()
    random = int.from_bytes(digest[:10], "big")
    return _VERSION_AND_VARIANT | (random >> 62 & 0xFFF) << 64 | random & _RAND_B


def lowest_id(instant: datetime) -> UUID:
    """Compute the lower bound, in PostgreSQL's order of UUIDs, of every id from ``instant`` on.

    Version and variant bits are zero, so that it is below any real id of that millisecond.
    """
    return UUID(int=_checked_ms(to_ms(instant)) << 80)


def instant_of(identifier: UUID) -> datetime:
    """Extract the instant in an event id.

    Raises:
        InvalidValue: The id is not a UUIDv7.
    """
    if identifier.version != 7:  # noqa: PLR2004
        raise InvalidValue("id", str(identifier), "use a UUIDv7 (version 7 of RFC 9562)")
    return from_ms(identifier.int >> 80)


def hour_of(identifier: UUID) -> datetime:
    """Extract the start of the UTC hour in an id, whoever made it: its first 48 bits are a time.

    Args:
        identifier: Any UUID.
    """
    return from_ms((identifier.int >> 80) // _HOUR_MS * _HOUR_MS)


def _checked_ms(milliseconds: int) -> int:
    if not 0 <= milliseconds < _MAX_MS:
        raise InvalidValue("metered_at", milliseconds, "use an instant from 1970 to 10889")
    return milliseconds
