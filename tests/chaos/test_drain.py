"""What a lost tail of Redis excuses: as much as it had forgotten, of whom it had."""

from __future__ import annotations

import pytest

from billing.reconciliation.invariants import Discrepancy, DiscrepancyKind
from lab.chaos.drain import _forgotten, _owed


def discrepancy(
    kind: DiscrepancyKind, expected: int, found: int, customer: str = "acme"
) -> Discrepancy:
    return Discrepancy(kind=kind, customer=customer, expected=expected, found=found, detail="")


def test_what_the_log_has_and_redis_has_not_was_forgotten():
    found = [
        discrepancy(DiscrepancyKind.SETTLED, 100, 70),
        discrepancy(DiscrepancyKind.SETTLED, 70, 100, "ahead"),
        discrepancy(DiscrepancyKind.AVAILABLE, 0, 30, "other"),
    ]
    assert _forgotten(found) == {"acme": 30}


@pytest.mark.parametrize(("found", "owed"), [(-30, True), (-31, False)])
def test_below_zero_by_no_more_than_that(found: int, owed: bool):
    assert _owed(discrepancy(DiscrepancyKind.NEGATIVE, 0, found), {"acme": 30}) is owed


def test_nothing_else_is_excused():
    assert not _owed(discrepancy(DiscrepancyKind.NEGATIVE, 0, -1, "other"), {"acme": 30})
    assert not _owed(discrepancy(DiscrepancyKind.SETTLED, 100, 99), {"acme": 30})
