"""Every error of Stripe's has one meaning."""

from __future__ import annotations

import typing

import pytest
import requests
import stripe
from stripe.events import V1BillingMeterErrorReportTriggeredEvent as ErrorReport
from stripe_description import operation

from billing.providers.port import VERDICTS, ProviderCause, ProviderVerdict
from billing.providers.stripe.client import failure_of
from billing.providers.stripe.errors import (
    CODES,
    KINDS,
    SENTENCES,
    Failure,
    StripeErrorKind,
    cause_of,
    cause_of_code,
)

DUPLICATE = "An event already exists with identifier wb:1:r1."
TOO_OLD = (
    "The event timestamp cannot be more than 35 days in past. Expected a timestamp greater than "
    "or equal to 1700000000"
)


@pytest.mark.parametrize(
    ("failure", "cause"),
    [
        (Failure(status=400, message=DUPLICATE), ProviderCause.DUPLICATE_IDENTIFIER),
        (Failure(status=400, code="duplicate_meter_event"), ProviderCause.DUPLICATE_IDENTIFIER),
        (Failure(status=400, message=TOO_OLD, param="timestamp"), ProviderCause.TOO_OLD),
        (Failure(status=400, code="timestamp_too_far_in_past"), ProviderCause.TOO_OLD),
        (
            Failure(status=400, message="cannot be more than 5 minutes in the future."),
            ProviderCause.IN_THE_FUTURE,
        ),
        (Failure(status=400, message="at most 15 significant digits"), ProviderCause.INVALID_VALUE),
        (Failure(status=400, code="no_meter"), ProviderCause.METER_MISSING),
        (Failure(status=400, code="archived_meter"), ProviderCause.METER_INACTIVE),
        (
            Failure(status=400, code="resource_missing", message="No such customer: 'cus_1'"),
            ProviderCause.CUSTOMER_MISSING,
        ),
        (
            Failure(status=400, code="resource_missing", param="customer"),
            ProviderCause.CUSTOMER_MISSING,
        ),
        (
            Failure(status=404, code="resource_missing", message="No such billing meter: 'm'"),
            ProviderCause.METER_MISSING,
        ),
        (Failure(status=404, code="resource_missing", param="id"), ProviderCause.INVALID_REQUEST),
        (Failure(status=400, code="parameter_unknown"), ProviderCause.INVALID_REQUEST),
        (Failure(status=400, code="livemode_mismatch"), ProviderCause.KEY_REFUSED),
        (Failure(status=402, code="card_declined"), ProviderCause.INVALID_REQUEST),
        (Failure(status=401), ProviderCause.KEY_REFUSED),
        (Failure(status=401, code="api_key_expired"), ProviderCause.KEY_REFUSED),
        (Failure(status=403), ProviderCause.PERMISSION_REFUSED),
        (Failure(status=409, code="idempotency_key_in_use"), ProviderCause.CONFLICT),
        (Failure(status=409), ProviderCause.CONFLICT),
        (Failure(status=429, code="rate_limit", named_limit=True), ProviderCause.RATE_LIMITED),
        (Failure(status=429, named_limit=True), ProviderCause.RATE_LIMITED),
        (Failure(status=429, code="lock_timeout"), ProviderCause.LOCK_TIMEOUT),
        (Failure(status=429), ProviderCause.LOCK_TIMEOUT),
        (Failure(status=500), ProviderCause.SERVER_ERROR),
        (Failure(status=503), ProviderCause.SERVER_ERROR),
        (Failure(status=424), ProviderCause.SERVER_ERROR),
        (Failure(status=408), ProviderCause.TIMED_OUT),
        (Failure(status=200, message="Invalid response body from API"), ProviderCause.SERVER_ERROR),
        (Failure(status=None), ProviderCause.SERVER_ERROR),
        (Failure(kind=StripeErrorKind.TIMEOUT), ProviderCause.TIMED_OUT),
        (Failure(kind=StripeErrorKind.CONNECTION), ProviderCause.CONNECTION_FAILED),
        (Failure(kind=StripeErrorKind.NO_KEY), ProviderCause.KEY_REFUSED),
    ],
)
def test_a_documented_error_has_its_cause(failure: Failure, cause: ProviderCause) -> None:
    assert cause_of(failure) is cause


@pytest.mark.parametrize("status", [None, *range(200, 600)])
def test_a_status_alone_never_says_that_a_figure_was_taken(status: int | None) -> None:
    verdict = VERDICTS[cause_of(Failure(status=status))]
    if status in {401, 403}:
        assert verdict is ProviderVerdict.STOPPED
    elif status is None or not 400 <= status < 500 or status in {408, 409, 424, 429}:
        assert verdict is ProviderVerdict.UNKNOWN
    else:
        assert verdict is ProviderVerdict.REFUSED


@pytest.mark.parametrize("status", [409, 429, 500, 503])
@pytest.mark.parametrize("code", sorted(CODES))
def test_without_a_definite_answer_no_code_makes_one(status: int, code: str) -> None:
    failure = Failure(status=status, code=code, message=DUPLICATE)
    assert VERDICTS[cause_of(failure)] is ProviderVerdict.UNKNOWN


def test_only_a_duplicate_is_an_acceptance() -> None:
    causes = {*CODES.values(), *(cause for _, cause in SENTENCES), *KINDS.values()}
    accepted = {cause for cause in causes if VERDICTS[cause] is ProviderVerdict.ACCEPTED}
    assert accepted == {ProviderCause.DUPLICATE_IDENTIFIER}
    assert ProviderCause.TAKEN not in causes


def test_sentences_are_compared_in_lower_case() -> None:
    assert all(part == part.lower() for part, _ in SENTENCES)


def test_every_code_of_an_error_report_is_in_the_table() -> None:
    sample = ErrorReport.V1BillingMeterErrorReportTriggeredEventData.Reason.ErrorType
    known = set(typing.get_args(typing.get_type_hints(sample)["code"]))
    # Some versions of the library type it as an open union around the list.
    codes = {code for entry in known for code in (typing.get_args(entry) or (entry,))}
    named = {code for code in codes if isinstance(code, str)}
    assert {"archived_meter", "no_meter", "timestamp_in_future"} <= named
    assert named <= set(CODES)


def test_every_error_of_the_second_meter_event_api_is_in_the_table() -> None:
    content = operation("POST", "/v2/billing/meter_events")["responses"]["default"]["content"]
    options = content["application/json"]["schema"]["oneOf"]
    names = {one["$ref"].removeprefix("#/components/schemas/v2.error") for one in options}
    codes = {name.removeprefix(".") for name in names if name}
    assert "duplicate_meter_event" in codes
    assert codes <= set(CODES)


def test_an_unknown_code_is_for_a_person() -> None:
    assert cause_of_code("meter_event_from_mars") is ProviderCause.INVALID_REQUEST
    assert cause_of_code("archived_meter") is ProviderCause.METER_INACTIVE


def every(base: type[Exception]) -> list[type[Exception]]:
    return [base, *(one for each in base.__subclasses__() for one in every(each))]


@pytest.mark.parametrize("kind", every(stripe.StripeError), ids=lambda kind: kind.__name__)
def test_every_error_class_of_the_library_can_be_read(kind: type[stripe.StripeError]) -> None:
    error = kind.__new__(kind)
    stripe.StripeError.__init__(error, "a sentence", http_status=400)
    failure = failure_of(error)
    assert failure.message == "a sentence"
    assert VERDICTS[cause_of(failure)] is not ProviderVerdict.ACCEPTED


def test_the_code_is_read_from_the_body_where_the_class_has_none() -> None:
    body = {"error": {"code": "lock_timeout", "message": "held"}}
    error = stripe.RateLimitError("held", http_status=429, json_body=body)
    assert error.code is None
    assert failure_of(error).code == "lock_timeout"
    assert cause_of(failure_of(error)) is ProviderCause.LOCK_TIMEOUT


def test_headers_are_read_whatever_their_case() -> None:
    headers = {"Stripe-Rate-Limited-Reason": "global-rate", "Idempotent-Replayed": "true"}
    failure = failure_of(stripe.RateLimitError("slow", http_status=429, headers=headers))
    assert failure.named_limit
    assert failure.replayed


def raised_from(cause: Exception | None) -> stripe.APIConnectionError:
    error = stripe.APIConnectionError("no answer")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("below", "kind"),
    [
        (requests.ReadTimeout(), StripeErrorKind.TIMEOUT),
        (requests.ConnectTimeout(), StripeErrorKind.TIMEOUT),
        (requests.ConnectionError(), StripeErrorKind.CONNECTION),
        (None, StripeErrorKind.CONNECTION),
    ],
)
def test_a_timeout_is_told_from_a_lost_connection(
    below: Exception | None, kind: StripeErrorKind
) -> None:
    assert failure_of(raised_from(below)).kind is kind


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "(Caused by NameResolutionError('Temporary failure in name resolution'))",
            "no answer from api.stripe.com: its name could not be found (is the network up?)",
        ),
        (
            "(Caused by NewConnectionError('[Errno 111] Connection refused'))",
            "no answer from api.stripe.com: nobody listens there",
        ),
        (
            "('Connection aborted.', RemoteDisconnected('Remote end closed connection'))",
            "no answer from api.stripe.com: the connection was closed before the answer",
        ),
        ("something else", "no answer from api.stripe.com: the connection failed"),
    ],
)
def test_a_lost_connection_is_said_in_a_sentence_and_not_as_a_dump(text: str, said: str) -> None:
    request = requests.Request("GET", "https://api.stripe.com/v1/x").prepare()
    below = requests.ConnectionError(text, request=request)
    assert failure_of(raised_from(below)).message == said
    assert failure_of(raised_from(None)).message == "no answer"


def test_a_missing_key_is_told_though_nothing_was_sent() -> None:
    assert failure_of(stripe.AuthenticationError("No API key")).kind is StripeErrorKind.NO_KEY
    assert (
        failure_of(stripe.AuthenticationError("Invalid", http_status=401)).kind
        is StripeErrorKind.ANSWER
    )


def test_a_long_sentence_is_cut() -> None:
    assert len(failure_of(stripe.APIError("x" * 5_000, http_status=500)).message) == 300
