"""Every cause has its words: what it means, and what to do."""

from __future__ import annotations

import pytest

from billing.health.cause_help import (
    PARKED,
    UNANSWERED,
    cause_in,
    help_for_parked,
    help_for_stop,
    message_of_unavailable,
)
from billing.providers.port import VERDICTS, ProviderCause, ProviderUnavailable, ProviderVerdict
from billing.providers.stripe.client import StripeUnanswered
from billing.reporting.usage_report import AttentionCause


def test_whatever_a_report_can_be_parked_for_has_words():
    refused = {
        cause.value for cause, verdict in VERDICTS.items() if verdict is ProviderVerdict.REFUSED
    }
    assert refused | {cause.value for cause in AttentionCause} == set(PARKED)


def test_whatever_can_keep_a_provider_from_answering_has_words():
    silent = {ProviderVerdict.UNKNOWN, ProviderVerdict.STOPPED}
    assert {cause for cause, verdict in VERDICTS.items() if verdict in silent} == set(UNANSWERED)


def test_no_words_are_empty_and_a_silence_says_that_nothing_is_lost(subtests: pytest.Subtests):
    for words in [*PARKED.values(), *UNANSWERED.values()]:
        with subtests.test(words=words):
            assert words.meaning
            assert words.remedy
    assert all("no usage is lost" in words.meaning for words in UNANSWERED.values())


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("Stripe: key_refused: Invalid API Key provided: sk_test_***", ProviderCause.KEY_REFUSED),
        ("key_refused: Invalid API Key provided", ProviderCause.KEY_REFUSED),
        ("permission_refused: ", ProviderCause.PERMISSION_REFUSED),
        ("no answer about its meters", None),
        ("", None),
    ],
)
def test_the_cause_is_found_in_what_a_run_says(text: str, cause: ProviderCause | None):
    assert cause_in(text) is cause


def test_a_cause_that_nobody_wrote_words_for_is_told_by_its_name():
    assert "moonlight" in help_for_parked("moonlight").meaning
    assert "no usage is lost" in help_for_stop("moonlight").meaning


@pytest.mark.parametrize(
    "error",
    [
        StripeUnanswered(ProviderCause.KEY_REFUSED, "Invalid API Key provided"),
        ProviderUnavailable("Stripe: key_refused: Invalid API Key provided"),
    ],
    ids=["with its cause", "in words"],
)
def test_a_refused_key_is_told_to_a_newcomer(error: ProviderUnavailable):
    message = message_of_unavailable(error)
    assert "Invalid API Key provided" in message
    assert "Remedy: copy the secret key of test mode" in message
