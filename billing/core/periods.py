"""Periods: half-open intervals of time. Months are computed in a customer's zone, stored in UTC."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from billing.core.errors import InvalidValue

_LABEL = re.compile(r"(\d{4})-(\d{2})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Period:
    """``start <= t < end``, both UTC, with the label people use (``2026-11``)."""

    label: str
    start: datetime
    end: datetime

    def __contains__(self, instant: datetime) -> bool:
        return self.start <= instant < self.end


def zone(name: str, *, field: str = "time_zone") -> ZoneInfo:
    """Look up the IANA time zone of that name.

    Raises:
        InvalidValue: There is none.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidValue(field, name, "use an IANA name such as Europe/Berlin or UTC") from None


def month_of(instant: datetime, time_zone: str = "UTC") -> Period:
    """Compute the calendar month of ``instant``, on the wall clocks of ``time_zone``."""
    local = instant.astimezone(zone(time_zone))
    return _month(local.year, local.month, time_zone)


def month_labelled(label: str, time_zone: str = "UTC") -> Period:
    """Parse a label such as ``2026-11``, on the wall clocks of ``time_zone``.

    Raises:
        InvalidValue: The label is not a year and a month.
    """
    match = _LABEL.fullmatch(label)
    if not match or not 1 <= int(match[2]) <= 12 or not 1970 <= int(match[1]) <= 9998:  # noqa: PLR2004
        raise InvalidValue("month", label, "write year and month, for example 2026-11")
    return _month(int(match[1]), int(match[2]), time_zone)


def next_month(period: Period, time_zone: str = "UTC") -> Period:
    """Compute the month after ``period`` in the same zone."""
    return month_of(period.end, time_zone)


def hour_floor(instant: datetime) -> datetime:
    """Compute the start of the UTC hour that ``instant`` falls in."""
    return instant.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def hour_ceiling(instant: datetime) -> datetime:
    """Compute the first start of a UTC hour that is not before ``instant``."""
    floor = hour_floor(instant)
    return floor if floor == instant else floor + timedelta(hours=1)


def _month(year: int, month: int, time_zone: str) -> Period:
    where = zone(time_zone)
    start = datetime(year, month, 1, tzinfo=where)
    end = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=where)
    return Period(f"{year:04d}-{month:02d}", start.astimezone(UTC), end.astimezone(UTC))
