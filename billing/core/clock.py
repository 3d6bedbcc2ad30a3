"""Clocks to pass in, and instants. UTC only; instants are aware, intervals half-open."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Protocol

from billing.core.errors import InvalidValue

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> datetime:
        """The present instant, UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """The present instant, UTC."""
        return datetime.now(UTC)


class ManualClock:
    """A clock that moves only when set; for tests and models."""

    def __init__(self, start: datetime) -> None:
        self._now = start.astimezone(UTC)

    def now(self) -> datetime:
        """The instant last set."""
        return self._now

    def advance(self, by: timedelta) -> None:
        """Move on by ``by`` (may be negative, as a wrong clock's step is)."""
        self._now += by


def to_ms(instant: datetime) -> int:
    """Convert to whole milliseconds since 1970, rounded down.

    Raises:
        InvalidValue: The instant has no time zone.
    """
    if instant.tzinfo is None:
        raise InvalidValue("instant", instant, "give it a time zone; Weighbridge computes in UTC")
    return (instant - EPOCH) // _MILLISECOND


def from_ms(milliseconds: int) -> datetime:
    """Convert milliseconds since 1970 to an instant."""
    return EPOCH + milliseconds * _MILLISECOND


def format_instant(instant: datetime) -> str:
    """Format as RFC 3339, UTC, milliseconds: ``2026-11-21T14:47:36.123Z``."""
    in_utc = instant if instant.tzinfo is UTC else instant.astimezone(UTC)
    return in_utc.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def parse_instant(text: str, *, field: str) -> datetime:
    """Parse an RFC 3339 text with an offset.

    Raises:
        InvalidValue: Not such a text, or without an offset.
    """
    try:
        instant = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise InvalidValue(
            field, text, "write an RFC 3339 instant such as 2026-11-21T14:47:36.123Z"
        ) from None
    if instant.tzinfo is None:
        raise InvalidValue(field, text, "add the offset, for example Z for UTC")
    return instant.astimezone(UTC)
