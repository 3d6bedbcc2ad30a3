"""A report's life as rules: states, identifiers, values, next steps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from billing.core.errors import InvalidValue
from billing.providers.port import ProviderAnswer, ProviderCause, ProviderVerdict
from billing.providers.report_value import (
    LARGEST_VALUE,
    MAX_HOUR_VALUE,
    MAX_IDENTIFIER,
    fits,
    fits_an_hour,
    scaled,
    value_text,
)
from billing.reporting.usage_report import (
    FIRST_WAIT,
    LONGEST_WAIT,
    TAKEN,
    ReportState,
    after_answer,
    backoff,
    identifier_of,
)

NOW = datetime(2026, 11, 10, 12, 30, tzinfo=UTC)
HOUR = datetime(2026, 11, 10, 11, tzinfo=UTC)
SECOND = timedelta(seconds=1)

names = st.text("abcdefghijklmnopqrstuvwxyz0123456789.-_", min_size=1, max_size=64)
hours = st.integers(0, 500_000).map(lambda h: datetime(2000, 1, 1, tzinfo=UTC) + h * 3600 * SECOND)


def test_an_identifier_says_what_it_names() -> None:
    made = identifier_of("prod", "stripe", "wb.page-capture", "acme", HOUR, 2)
    assert made == "prod:stripe:wb.page-capture:acme:20261110T11Z:r2"


def test_an_identifier_is_of_the_instant_and_not_of_the_zone_it_is_written_in() -> None:
    elsewhere = HOUR.astimezone(timezone(timedelta(hours=5, minutes=45)))
    same = [identifier_of("prod", "stripe", "m", "acme", hour, 1) for hour in (HOUR, elsewhere)]
    assert same[0] == same[1]


@given(meter=names, customer=names, hour=hours, revision=st.integers(1, 10**6))
def test_an_identifier_has_at_most_a_hundred_characters(
    meter: str, customer: str, hour: datetime, revision: int
) -> None:
    made = identifier_of("staging-eu", "stripe", meter, customer, hour, revision)
    assert 1 <= len(made) <= MAX_IDENTIFIER
    assert made.startswith("staging-eu:")
    assert made.endswith(f":r{revision}")


@given(
    st.lists(st.tuples(names, names, hours, st.integers(1, 3)), min_size=2, unique=True),
    st.sampled_from(["", "x" * 60]),
)
def test_no_two_revisions_have_the_same_identifier(
    keys: list[tuple[str, str, datetime, int]], longer: str
) -> None:
    made = [identifier_of("t", "stripe", longer + m, c, h, r) for m, c, h, r in keys]
    assert len(set(made)) == len(keys)


@pytest.mark.parametrize("environment", ["", "Prod", "a:b", "x" * 21, "é"])
def test_an_environment_that_would_blur_identifiers_is_refused(environment: str) -> None:
    with pytest.raises(InvalidValue, match="environment"):
        identifier_of(environment, "stripe", "m", "acme", HOUR, 1)


def test_revisions_count_from_one() -> None:
    with pytest.raises(InvalidValue, match="revision"):
        identifier_of("prod", "stripe", "m", "acme", HOUR, 0)


@pytest.mark.parametrize(
    ("amount", "decimals", "value", "remainder"),
    [
        (1_234_567, 6, 1_234_567, 0),
        (1_234_567, 2, 123, 4_567),
        (1_234_567, 0, 1, 234_567),
        (999_999, 0, 0, 999_999),
        (0, 3, 0, 0),
        (-1_234_567, 2, -123, -4_567),
        (-1, 6, -1, 0),
        (10**30 + 1, 5, 10**29, 1),
    ],
)
def test_an_amount_is_scaled_towards_zero_with_its_remainder(
    amount: int, decimals: int, value: int, remainder: int
) -> None:
    found = scaled(amount, decimals)
    assert (found.value, found.remainder_microcredits) == (value, remainder)


@given(amount=st.integers(-(10**24), 10**24), decimals=st.integers(0, 6))
def test_value_and_remainder_are_the_amount_to_the_unit(amount: int, decimals: int) -> None:
    found = scaled(amount, decimals)
    unit = 10 ** (6 - decimals)
    assert found.value * unit + found.remainder_microcredits == amount
    assert abs(found.remainder_microcredits) < unit


@pytest.mark.parametrize("decimals", [-1, 7])
def test_a_scale_that_the_log_does_not_have_is_refused(decimals: int) -> None:
    with pytest.raises(InvalidValue, match="decimals"):
        scaled(1, decimals)


@given(st.integers(-LARGEST_VALUE, LARGEST_VALUE))
def test_a_value_that_fits_survives_a_double_and_is_written_without_exponent(value: int) -> None:
    assert int(float(value)) == value
    assert value_text(value).lstrip("-").isdecimal()
    assert int(value_text(value)) == value


def test_a_month_of_the_largest_hours_still_fits() -> None:
    assert fits_an_hour(MAX_HOUR_VALUE)
    assert not fits_an_hour(MAX_HOUR_VALUE + 1)
    assert fits(MAX_HOUR_VALUE * 31 * 24)
    assert not fits((MAX_HOUR_VALUE + 1) * 31 * 24)


@pytest.mark.parametrize("value", [10**15, -(10**15)])
def test_sixteen_digits_do_not_fit(value: int) -> None:
    assert not fits(value)
    with pytest.raises(InvalidValue, match="15 digits"):
        value_text(value)


@pytest.mark.parametrize("cause", list(ProviderCause))
@pytest.mark.parametrize("outcome_unknown", [False, True])
def test_every_answer_ends_the_sending(cause: ProviderCause, outcome_unknown: bool) -> None:
    outcome = after_answer(ProviderAnswer(cause=cause), outcome_unknown=outcome_unknown)
    assert outcome.state in {
        ReportState.ACCEPTED, ReportState.UNKNOWN, ReportState.PENDING, ReportState.NEEDS_ATTENTION,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("cause", "outcome_unknown", "state", "doubtful_after"),
    [
        (ProviderCause.TAKEN, True, ReportState.ACCEPTED, False),
        (ProviderCause.DUPLICATE_IDENTIFIER, True, ReportState.ACCEPTED, False),
        (ProviderCause.TIMED_OUT, False, ReportState.UNKNOWN, True),
        (ProviderCause.RATE_LIMITED, False, ReportState.UNKNOWN, True),
        (ProviderCause.CUSTOMER_MISSING, False, ReportState.NEEDS_ATTENTION, False),
        (ProviderCause.CUSTOMER_MISSING, True, ReportState.NEEDS_ATTENTION, True),
        (ProviderCause.KEY_REFUSED, False, ReportState.PENDING, False),
        (ProviderCause.KEY_REFUSED, True, ReportState.UNKNOWN, True),
    ],
)
def test_only_acceptance_ends_the_doubt_about_an_earlier_attempt(
    cause: ProviderCause, outcome_unknown: bool, state: ReportState, doubtful_after: bool
) -> None:
    outcome = after_answer(ProviderAnswer(cause=cause), outcome_unknown=outcome_unknown)
    assert (outcome.state, outcome.outcome_unknown) == (state, doubtful_after)


@given(attempts=st.integers(0, 10**6), jitter=st.floats(0, 1))
def test_waits_lie_between_half_and_all_of_a_bounded_time(attempts: int, jitter: float) -> None:
    wait = backoff(attempts, jitter)
    assert FIRST_WAIT / 2 <= wait <= LONGEST_WAIT
    assert backoff(attempts, 0.0) * 2 >= wait
    assert backoff(attempts + 1, jitter) >= wait


def test_waits_double_up_to_an_hour() -> None:
    waits = [backoff(attempts, 1.0).total_seconds() for attempts in range(1, 13)]
    assert waits == [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]


class ReportLife(RuleBasedStateMachine):
    """One report that is sent to a provider which may have the effect and lose the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.state = ReportState.PENDING
        self.outcome_unknown = False
        self.provider_has_it = False

    @precondition(lambda self: self.state in (ReportState.PENDING, ReportState.UNKNOWN))
    @rule()
    def claim(self) -> None:
        self.state = ReportState.SENDING

    @precondition(lambda self: self.state is ReportState.SENDING)
    @rule(cause=st.sampled_from(ProviderCause), arrived=st.booleans())
    def answer(self, cause: ProviderCause, arrived: bool) -> None:
        answer = ProviderAnswer(cause=cause)
        if cause is ProviderCause.DUPLICATE_IDENTIFIER and not self.provider_has_it:
            return
        taken = answer.verdict is ProviderVerdict.ACCEPTED
        self.provider_has_it |= taken or (answer.verdict is ProviderVerdict.UNKNOWN and arrived)
        outcome = after_answer(answer, outcome_unknown=self.outcome_unknown)
        self.state = outcome.state
        self.outcome_unknown = outcome.outcome_unknown

    @precondition(lambda self: self.state is ReportState.SENDING)
    @rule(arrived=st.booleans())
    def left_behind(self, arrived: bool) -> None:
        self.provider_has_it |= arrived
        self.state = ReportState.UNKNOWN
        self.outcome_unknown = True

    @precondition(lambda self: self.state in TAKEN)
    @rule()
    def next_revision(self) -> None:
        self.state, self.outcome_unknown, self.provider_has_it = ReportState.PENDING, False, False

    @precondition(lambda self: self.state is ReportState.NEEDS_ATTENTION)
    @rule()
    def retried(self) -> None:
        self.state = ReportState.UNKNOWN if self.outcome_unknown else ReportState.PENDING

    @invariant()
    def the_books_say_no_more_than_is_known(self) -> None:
        if self.state in TAKEN:
            assert self.provider_has_it
        elif not self.outcome_unknown:
            assert not self.provider_has_it
        if self.state is ReportState.PENDING:
            assert not self.outcome_unknown


TestReportLife = ReportLife.TestCase
