"""What agrees and what does not, without a server: billing/reconciliation/invariants.py."""

from __future__ import annotations

import json
from typing import Any

import pytest

from billing.reconciliation.invariants import (
    CustomerBalances,
    DiscrepancyKind,
    compare,
    compare_rollups,
)

SOUND: dict[str, Any] = {
    "customer": "acme",
    "granted": 100,
    "fenced": 100,
    "logged": 30,
    "rolled_up": 30,
    "account_granted": 100,
    "account_settled": 30,
    "account_held": 20,
    "open_holds": 20,
}
NO_ACCOUNT = {"account_granted": None, "account_settled": None, "account_held": None}


def found(**changes: object) -> set[tuple[DiscrepancyKind, int, int]]:
    """Kind, expected and found of every discrepancy of one customer's books."""
    return {(d.kind, d.expected, d.found) for d in compare([CustomerBalances(**(SOUND | changes))])}


def test_books_that_agree_have_no_discrepancy():
    assert compare([]) == []
    assert (
        compare([CustomerBalances(**SOUND), CustomerBalances(**(SOUND | {"customer": "globex"}))])
        == []
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"fenced": 90}, {(DiscrepancyKind.GRANTED, 100, 90)}),
        ({"rolled_up": 29}, {(DiscrepancyKind.ROLLUP, 30, 29)}),
        ({"rolled_up": 31}, {(DiscrepancyKind.ROLLUP, 30, 31)}),
        (
            {"account_granted": 101},
            {(DiscrepancyKind.GRANTED, 100, 101), (DiscrepancyKind.AVAILABLE, 50, 51)},
        ),
        (
            {"account_settled": 31},
            {(DiscrepancyKind.SETTLED, 30, 31), (DiscrepancyKind.AVAILABLE, 50, 49)},
        ),
        # One microcredit locked away by no hold, and one hold that nothing is locked for.
        (
            {"account_held": 21},
            {(DiscrepancyKind.AVAILABLE, 20, 21), (DiscrepancyKind.AVAILABLE, 50, 49)},
        ),
        (
            {"open_holds": 21},
            {(DiscrepancyKind.AVAILABLE, 21, 20), (DiscrepancyKind.AVAILABLE, 49, 50)},
        ),
        (
            {"logged": 31, "rolled_up": 31},
            {(DiscrepancyKind.SETTLED, 31, 30), (DiscrepancyKind.AVAILABLE, 49, 50)},
        ),
    ],
)
def test_every_side_that_differs_is_named_with_what_postgresql_says(
    changes: dict[str, int], expected: set[tuple[DiscrepancyKind, int, int]]
):
    assert found(**changes) == expected


def test_two_errors_that_cancel_out_in_what_is_available_are_both_found():
    kinds = {kind for kind, *_ in found(account_settled=31, account_held=19)}

    assert kinds == {DiscrepancyKind.SETTLED, DiscrepancyKind.AVAILABLE}


def test_a_balance_below_zero_is_found_although_the_sides_agree():
    below = {"logged": 90, "rolled_up": 90, "account_settled": 90}

    assert found(**below) == {(DiscrepancyKind.NEGATIVE, 0, -10)}


def test_a_balance_of_exactly_zero_is_sound():
    assert found(logged=80, rolled_up=80, account_settled=80) == set()


def test_a_customer_without_an_account_in_redis_is_compared_without_it():
    assert found(**NO_ACCOUNT, open_holds=0) == set()
    assert found(**NO_ACCOUNT, open_holds=0, fenced=7) == {(DiscrepancyKind.GRANTED, 100, 7)}


def test_an_account_of_zeros_is_an_account():
    zeros = {"account_granted": 0, "account_settled": 0, "account_held": 0, "open_holds": 0}

    assert {kind for kind, *_ in found(**zeros)} == {
        DiscrepancyKind.GRANTED,
        DiscrepancyKind.SETTLED,
        DiscrepancyKind.AVAILABLE,
    }


def test_each_customer_is_told_apart():
    others = CustomerBalances(**(SOUND | {"customer": "globex", "fenced": 99}))

    (discrepancy,) = compare([CustomerBalances(**SOUND), others])

    assert discrepancy.customer == "globex"
    assert discrepancy.detail == "sum of grants against the fence"


def test_a_discrepancy_can_be_told_as_json():
    (discrepancy,) = compare([CustomerBalances(**(SOUND | {"fenced": 99}))])

    assert json.loads(json.dumps(discrepancy.as_dict())) == {
        "kind": "granted",
        "customer": "acme",
        "expected": 100,
        "found": 99,
        "detail": "sum of grants against the fence",
        "bucket": [],
    }


BUCKET = ("acme", "2026-11-10T12:00:00.000Z", "page-capture", "succeeded", "")
LATER = ("acme", "2026-11-10T13:00:00.000Z", "page-capture", "succeeded", "")


def test_rollups_that_are_the_sums_of_the_log_have_no_discrepancy():
    assert compare_rollups({}, {}) == []
    assert compare_rollups({BUCKET: (1, 1, 5, 0, 0)}, {BUCKET: (1, 1, 5, 0, 0)}) == []


@pytest.mark.parametrize("column", range(5), ids=["events", "quantity", "amount", "short", "cost"])
def test_a_rollup_off_by_one_in_any_column_is_found(column: int):
    edited = [3, 3, 30, 1, 2]
    edited[column] += 1

    (discrepancy,) = compare_rollups({BUCKET: (3, 3, 30, 1, 2)}, {BUCKET: tuple(edited)})

    assert discrepancy.kind is DiscrepancyKind.ROLLUP
    assert (discrepancy.expected, discrepancy.found) == (30, edited[2])
    assert "2026-11-10T12:00:00.000Z page-capture succeeded" in discrepancy.detail


def test_a_bucket_that_only_one_side_has_is_found():
    figures = (1, 1, 5, 0, 0)

    missing, invented = compare_rollups({BUCKET: figures}, {LATER: figures})

    assert (missing.expected, missing.found) == (5, 0)
    assert (invented.expected, invented.found) == (0, 5)


def test_usage_in_the_wrong_hour_is_found_although_the_totals_agree():
    logged = {BUCKET: (2, 2, 10, 0, 0), LATER: (1, 1, 5, 0, 0)}
    rolled_up = {BUCKET: (1, 1, 5, 0, 0), LATER: (2, 2, 10, 0, 0)}

    assert len(compare_rollups(logged, rolled_up)) == 2
