"""Ids of distinct subjects: enough to tell two apart, not enough to read one back. Pure.

An id stands for a subject of one customer, one SKU and one month. Its first two bytes are the
month, so that what is written at one time lies together; the other fourteen are SHA-256 over the
names and the subject's own digest.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from hashlib import sha256
from typing import Any, Final

HOUR_MS: Final = 3_600_000
SubjectGroup = tuple[str, str, int]
"""Customer, SKU and the number of the month."""

_DIGEST_BYTES: Final = 16
_HASHED_BYTES: Final = 14
_EPOCH_YEAR: Final = 1970
_MONTHS: Final = 12
_MOST_NAMES: Final = 100_000


class SubjectIds:
    """Makes ids; keeps what is the same for every subject of a customer and SKU."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, str], Any] = {}

    def id_of(self, customer: str, sku: str, month: int, subject: str) -> bytes:
        """The 16 bytes that stand for a subject.

        Args:
            customer: Whose usage it was.
            sku: What was used.
            month: Of ``month_number``.
            subject: What it was used on.
        """
        hashed = self._names.get((customer, sku))
        if hashed is None:
            hashed = sha256(f"{len(customer)}:{customer}{len(sku)}:{sku}".encode())
            if len(self._names) < _MOST_NAMES:
                self._names[customer, sku] = hashed
        whole = hashed.copy()
        whole.update(sha256(subject.encode()).digest()[:_DIGEST_BYTES])
        found: bytes = month.to_bytes(2, "big") + whole.digest()[:_HASHED_BYTES]
        return found


def hour_at(number: int) -> datetime:
    """The start of the UTC hour of that number since 1970."""
    return datetime.fromtimestamp(number * HOUR_MS // 1000, UTC)


def month_number(hour: int) -> int:
    """How many UTC months after January 1970 an hour is, given as its number."""
    start = hour_at(hour)
    return (start.year - _EPOCH_YEAR) * _MONTHS + start.month - 1


def first_day(month: int) -> date:
    """The day that names a month of ``month_number``."""
    years, months = divmod(month, _MONTHS)
    return date(_EPOCH_YEAR + years, months + 1, 1)
