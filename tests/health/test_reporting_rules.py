"""The doctor's verdicts on reporting."""

from __future__ import annotations

from datetime import timedelta

import pytest
from support import NOW

from billing.health import report_rules as rules
from billing.health.finding import HealthFinding, Level


def test_a_provider_that_can_be_talked_to_says_how_it_was_chosen():
    found = rules.provider("stripe", chosen="STRIPE_API_KEY is set", live=False)
    assert (found.level, found.found) == (Level.OK, "stripe, test mode (STRIPE_API_KEY is set)")
    assert "live mode" in rules.provider("stripe", chosen="", live=True).found
    assert "mode" not in rules.provider("ledger", chosen="", live=True).found


def test_a_provider_that_cannot_be_talked_to_fails():
    found = rules.provider("stripe", chosen="", live=False, problem="there is no key")
    assert found.level is Level.FAIL
    assert "there is no key" in found.found


@pytest.mark.parametrize(
    ("provider", "has_secret", "level"),
    [
        ("stripe", True, Level.OK),
        ("stripe", False, Level.WARN),
        ("ledger", False, None),
        ("file", False, None),
    ],
)
def test_a_webhook_secret_is_asked_for_only_where_stripe_gets_usage(
    provider: str, has_secret: bool, level: Level | None
):
    found = rules.webhook_secret(provider, has_secret=has_secret)
    assert (found.level if found else None) is level


AGES = [
    (timedelta(hours=-1), Level.OK),
    (timedelta(0), Level.OK),
    (timedelta(hours=8), Level.OK),
    (timedelta(hours=8, seconds=1), Level.WARN),
    (timedelta(hours=20), Level.WARN),
    (timedelta(hours=20, seconds=1), Level.FAIL),
    (timedelta(days=40), Level.FAIL),
]


@pytest.mark.parametrize(("age", "level"), AGES)
def test_how_long_a_report_may_wait_and_how_long_ago_a_run_may_be(age: timedelta, level: Level):
    assert rules.unconfirmed(NOW - age, now=NOW).level is level
    assert rules.runs(NOW - age, now=NOW, has_usage=True).level is level


def test_without_a_report_nothing_waits():
    assert rules.unconfirmed(None, now=NOW).level is Level.OK


@pytest.mark.parametrize(("has_usage", "level"), [(False, Level.OK), (True, Level.WARN)])
def test_that_nothing_ever_ran_matters_once_there_is_usage(has_usage: bool, level: Level):
    assert rules.runs(None, now=NOW, has_usage=has_usage).level is level


@pytest.mark.parametrize(
    ("days", "provider", "level"),
    [
        (None, "stripe", Level.OK),
        (29, "stripe", Level.OK),
        (30, "stripe", Level.FAIL),
        (30, "ledger", Level.WARN),
    ],
)
def test_usage_that_is_nearly_too_old_says_what_becomes_of_it(
    days: int | None, provider: str, level: Level
):
    oldest = None if days is None else NOW - timedelta(days=days)
    found = rules.oldest_hour(oldest, now=NOW, provider=provider)
    assert found.level is level
    assert ("later period" in found.meaning) == (level is not Level.OK)


@pytest.mark.parametrize(
    ("late", "text"),
    [
        (timedelta(0), "0 min"),
        (timedelta(minutes=7, seconds=59), "7 min"),
        (timedelta(hours=2, minutes=5), "2 h 5 min"),
        (timedelta(days=3, hours=4, minutes=59), "3 d 4 h"),
    ],
)
def test_a_span_is_told_in_two_words(late: timedelta, text: str):
    assert rules.span_text(late) == text


@pytest.mark.parametrize(
    ("count", "age", "level"),
    [
        (0, None, Level.OK),
        (3, timedelta(hours=1), Level.OK),
        (3, timedelta(hours=9), Level.WARN),
    ],
)
def test_reports_without_an_answer(count: int, age: timedelta | None, level: Level):
    oldest = None if age is None else NOW - age
    assert rules.unknown(count, oldest, now=NOW).level is level


@pytest.mark.parametrize(
    ("causes", "level"),
    [
        ({}, Level.OK),
        ({"nothing_to_tell": 5, "provider_changed": 1}, Level.OK),
        ({"by_hand": 0}, Level.OK),
        ({"unmapped_customer": 1}, Level.WARN),
        ({"something_new": 1, "nothing_to_tell": 5}, Level.WARN),
    ],
)
def test_what_is_parked_and_needs_somebody(causes: dict[str, int], level: Level):
    assert rules.parked(causes).level is level


def test_of_several_causes_the_most_frequent_gives_the_remedy():
    found = rules.parked({"unmapped_customer": 1, "meter_missing": 7, "nothing_to_tell": 99})
    assert found.found == "meter_missing 7, unmapped_customer 1"
    assert "retry --cause meter_missing" in found.remedy


def test_whatever_is_wrong_says_what_it_means_and_what_to_do(subtests: pytest.Subtests):
    long_ago = NOW - timedelta(days=2)
    findings: list[HealthFinding | None] = [
        rules.provider("stripe", chosen="", live=False, problem="no"),
        rules.webhook_secret("stripe", has_secret=False),
        rules.unconfirmed(long_ago, now=NOW),
        rules.runs(long_ago, now=NOW, has_usage=True),
        rules.oldest_hour(NOW - timedelta(days=40), now=NOW, provider="stripe"),
        rules.unknown(1, long_ago, now=NOW),
        rules.parked({"by_hand": 1}),
    ]
    for found in findings:
        with subtests.test(found=found):
            assert found is not None
            assert found.level is not Level.OK
            assert found.meaning
            assert found.remedy
