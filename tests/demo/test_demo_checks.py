from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from demo_evidence import CREDIT, DENIED, ENDS, SITE, good_books, good_evidence, reported

from billing.reconciliation.invariants import Discrepancy, DiscrepancyKind
from lab.demo.checks import Check, Evidence, as_planned, invariants
from lab.demo.results import End


def violated(checks: Iterable[Check]) -> dict[str, list[str]]:
    return {check.claim: list(check.violations) for check in checks if not check.holds}


def only_violation(evidence: Evidence) -> tuple[str, str]:
    ((claim, sentences),) = violated(invariants(evidence)).items()
    (sentence,) = sentences
    return claim, sentence


def test_a_good_demo_passes_every_check():
    evidence = good_evidence()
    assert violated([*invariants(evidence), as_planned(evidence)]) == {}


def test_the_evidence_for_the_balance_is_a_sum_that_can_be_checked_by_hand():
    checks = {check.claim: check.evidence for check in invariants(good_evidence())}
    assert checks["grants - settled - held = available, for every customer"] == (
        "11 - 3 - 0 = 8 credits"
    )
    assert checks["settled in Redis = log = rollups, bucket by bucket"] == "3 = 3 = 3"


@pytest.mark.parametrize("kind", list(DiscrepancyKind))
def test_every_kind_of_discrepancy_violates_one_invariant(kind: DiscrepancyKind):
    found = Discrepancy(kind=kind, customer="atlas", expected=1, found=2, detail="a1")
    claim, sentence = only_violation(good_evidence(discrepancies=[found]))
    assert claim
    assert sentence == f"atlas: {kind}: expected 1, found 2 (a1)"


@pytest.mark.parametrize(
    ("spoiled", "sentence"),
    [
        ({"duplicates": 1}, "1 rows too many"),
        ({"open_holds": 2}, "2 holds still open"),
        ({"outbox": 3}, "3 events still in the outbox"),
        ({"dead": 4}, "4 dead letters: see billing dead list"),
    ],
)
def test_what_is_left_over_is_a_violation(spoiled: dict[str, int], sentence: str):
    books = replace(good_books(), **spoiled)  # type: ignore[arg-type]  # names of its fields
    assert only_violation(good_evidence(books=books))[1] == sentence


@pytest.mark.parametrize("side", ["logged", "rolled_up", "reported", "confirmed"])
def test_a_figure_that_one_side_has_otherwise_is_named(side: str):
    rows = [reported("atlas", 2 * CREDIT, **{side: 5}), reported("corvus", CREDIT)]
    claim, sentence = only_violation(good_evidence(reported=rows))
    assert claim.startswith("log = rollups = reported = confirmed")
    assert sentence.startswith("atlas, page-capture: ")


def test_a_page_fetched_for_a_denied_task_is_a_trace():
    visits = {**good_evidence().visits, f"{SITE}/c3": 1}
    claim, sentence = only_violation(good_evidence(visits=visits))
    assert claim == "a denied task left no trace of its body having run"
    assert sentence == f"{SITE}/c3 was fetched for a denied task"


def test_a_second_delivery_that_did_not_run_shows_nothing():
    visits = {**good_evidence().visits, f"{SITE}/a1": 1}
    assert only_violation(good_evidence(visits=visits)) == (
        "a message delivered twice runs twice and is billed once",
        f"{SITE}/a1 was asked for 1 times, not 2",
    )


def test_a_task_that_celery_and_the_log_tell_differently_is_a_violation():
    evidence = good_evidence(ends={**ENDS, "a2": End("failed", "TooSlowError")})
    found = violated(invariants(evidence))["what Celery says of every task is what the log has"]
    assert found == [
        "atlas: 1 succeeded in Celery, 2 in the log",
        "atlas: 2 failed in Celery, 1 in the log",
    ]


def test_a_customer_who_was_not_stopped_is_not_as_planned():
    check = as_planned(good_evidence(ends={**ENDS, "c2": End("succeeded")}))
    assert check.violations == [
        "corvus: succeeded 2, planned 1",
        "corvus: denied {'insufficient_credits': 1}, planned {'insufficient_credits': 2}",
    ]


def test_a_customer_denied_for_another_reason_is_not_as_planned():
    ends = {**ENDS, "c2": End("denied", "budget_exceeded"), "c3": DENIED}
    assert len(as_planned(good_evidence(ends=ends)).violations) == 1


def test_a_chord_that_did_not_fail_is_not_as_planned():
    check = as_planned(good_evidence(broken_chords={}))
    assert check.violations == ["corvus: broken chords 0, planned 1"]


def test_a_lowest_balance_is_named():
    books = good_books()
    spoiled = replace(books.customers[1], available=-CREDIT)
    evidence = good_evidence(books=replace(books, customers=[books.customers[0], spoiled]))
    checks = {check.claim: check.evidence for check in invariants(evidence)}
    assert checks["available is never negative"] == "lowest -1"
