"""Integer sums over events: of an hour, a bucket, a month, an archive."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Totals:
    """Integer sums over events."""

    events: int = 0
    quantity: int = 0
    amount_microcredits: int = 0
    shortfall_microcredits: int = 0
    cost_micros: int = 0


def totals_of(row: Iterable[Any]) -> Totals:
    """Build totals from five sums as PostgreSQL gives them: numeric, or NULL over no rows."""
    return Totals(*(int(value or 0) for value in row))
