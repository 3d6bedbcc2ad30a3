"""What each of Stripe's errors means for a report: one table, without any I/O.

The status decides first whether there is a definite answer at all; of a definite refusal the code
tells why, and where v1 gives no code, its sentence does. Codes are those of Stripe's API
description and of its documentation of meter errors; ``cause_of_code`` serves error reports too,
which come long after the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit

import requests
import stripe

from billing.providers.port import Cause

MAX_DETAIL: Final = 300
RATE_LIMIT_HEADER: Final = "stripe-rate-limited-reason"
REPLAYED_HEADER: Final = "idempotent-replayed"
_BAD_REQUEST: Final = 400
_CONFLICT: Final = 409
_TOO_MANY: Final = 429
_SERVER: Final = 500


class Kind(StrEnum):
    """What came instead of a good answer."""

    ANSWER = "answer"
    """An answer that tells an error, or one that cannot be understood."""
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    NO_KEY = "no_key"
    """The client library sent nothing, for it has no key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error as data.

    ``status`` is None where no answer came. ``named_limit``: a 429 says which limit it was.
    ``replayed``: it is the stored answer to an earlier request of the same Idempotency-Key.
    """

    kind: Kind = Kind.ANSWER
    status: int | None = None
    code: str = ""
    param: str = ""
    message: str = ""
    named_limit: bool = False
    replayed: bool = False


CODES: Final[Mapping[str, Cause]] = {
    # Meter events: at once in v2, in error reports for v1.
    "duplicate_meter_event": Cause.DUPLICATE_IDENTIFIER,
    "archived_meter": Cause.METER_INACTIVE,
    "no_meter": Cause.METER_MISSING,
    "meter_event_customer_not_found": Cause.CUSTOMER_MISSING,
    "meter_event_no_customer_defined": Cause.INVALID_REQUEST,
    "payload_no_customer_defined": Cause.INVALID_REQUEST,
    "meter_event_invalid_value": Cause.INVALID_VALUE,
    "payload_invalid_value": Cause.INVALID_VALUE,
    "meter_event_value_not_found": Cause.INVALID_VALUE,
    "payload_no_value_defined": Cause.INVALID_VALUE,
    "meter_event_value_too_many_digits": Cause.INVALID_VALUE,
    "meter_event_dimension_count_too_high": Cause.INVALID_REQUEST,
    "missing_dimension_payload_keys": Cause.INVALID_REQUEST,
    "timestamp_in_future": Cause.IN_THE_FUTURE,
    "timestamp_too_far_in_past": Cause.TOO_OLD,
    "too_many_concurrent_requests": Cause.RATE_LIMITED,
    # Any request. What is not named here is an INVALID_REQUEST.
    "rate_limit": Cause.RATE_LIMITED,
    "lock_timeout": Cause.LOCK_TIMEOUT,
    "idempotency_key_in_use": Cause.CONFLICT,
    "customer_deleted": Cause.CUSTOMER_MISSING,
    "api_key_expired": Cause.KEY_REFUSED,
    "platform_api_key_expired": Cause.KEY_REFUSED,
    "secret_key_required": Cause.KEY_REFUSED,
    "livemode_mismatch": Cause.KEY_REFUSED,
}
"""Why, by the code of an error."""

SENTENCES: Final[tuple[tuple[str, Cause], ...]] = (
    ("already exists with identifier", Cause.DUPLICATE_IDENTIFIER),
    ("more than 35 days in past", Cause.TOO_OLD),
    ("minutes in the future", Cause.IN_THE_FUTURE),
    ("significant digits", Cause.INVALID_VALUE),
    ("no such customer", Cause.CUSTOMER_MISSING),
    ("no such billing meter", Cause.METER_MISSING),
    ("no meter found", Cause.METER_MISSING),
)
"""Why, by a part of the sentence (in lower case) of a refusal whose code says nothing."""

STATUSES: Final[Mapping[int, Cause]] = {
    401: Cause.KEY_REFUSED,
    403: Cause.PERMISSION_REFUSED,
    408: Cause.TIMED_OUT,
    _CONFLICT: Cause.CONFLICT,
    424: Cause.SERVER_ERROR,
    _TOO_MANY: Cause.RATE_LIMITED,
}
"""Statuses that say it all. Others: below 400 and from 500 there is no definite answer; between
them a definite refusal."""

UNREACHED: Final = (
    ("nameresolution", "its name could not be found (is the network up?)"),
    ("name or service not known", "its name could not be found (is the network up?)"),
    ("getaddrinfo", "its name could not be found (is the network up?)"),
    ("refused", "nobody listens there"),
    ("proxy", "the proxy on the way did not let it pass"),
    ("certificate", "its certificate was not accepted"),
    ("ssl", "no encrypted connection came about"),
    ("unreachable", "there is no way there (is the network up?)"),
    ("closed", "the connection was closed before the answer"),
    ("reset", "the connection was closed before the answer"),
    ("aborted", "the connection was closed before the answer"),
)
"""Why there was no connection, by a part (in lower case) of the error below; the first fits."""

KINDS: Final[Mapping[Kind, Cause]] = {
    Kind.TIMEOUT: Cause.TIMED_OUT,
    Kind.CONNECTION: Cause.CONNECTION_FAILED,
    Kind.NO_KEY: Cause.KEY_REFUSED,
}


def cause_of(failure: Failure) -> Cause:
    """What an error means. Total: every failure has a cause."""
    if failure.kind in KINDS:
        return KINDS[failure.kind]
    status = failure.status
    if status == _TOO_MANY:
        # A 429 that names no limit is an object held by another request, with or without the code.
        lock = failure.code == "lock_timeout" or not (failure.named_limit or failure.code)
        return Cause.LOCK_TIMEOUT if lock else Cause.RATE_LIMITED
    if status is None:
        return Cause.SERVER_ERROR
    if status in STATUSES:
        return STATUSES[status]
    if not _BAD_REQUEST <= status < _SERVER:
        return Cause.SERVER_ERROR
    return _refusal(failure)


def cause_of_code(code: str) -> Cause:
    """Why, by the code alone, as an error report gives it."""
    return CODES.get(code, Cause.INVALID_REQUEST)


def failure_of(error: stripe.StripeError) -> Failure:
    """An error of stripe-python as data."""
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    # The attribute ``code`` is empty on several of the classes; the body has it.
    body = error.error
    code = getattr(body, "code", None) or error.code or ""
    param = getattr(body, "param", None) or getattr(error, "param", None) or ""
    kind = _kind(error)
    text = _unreached(error) if kind is Kind.CONNECTION else error.user_message
    return Failure(
        kind=kind,
        status=error.http_status,
        code=code,
        param=param,
        message=(text or type(error).__name__)[:MAX_DETAIL],
        named_limit=RATE_LIMIT_HEADER in headers,
        replayed=headers.get(REPLAYED_HEADER) == "true",
    )


def _refusal(failure: Failure) -> Cause:
    if failure.code in CODES:
        return CODES[failure.code]
    sentence = failure.message.lower()
    for part, cause in SENTENCES:
        if part in sentence:
            return cause
    if failure.code == "resource_missing" and failure.param == "customer":
        return Cause.CUSTOMER_MISSING
    return Cause.INVALID_REQUEST


def _unreached(error: stripe.StripeError) -> str:
    """Why there was no connection, in a sentence: the library's own text is a dump of the error."""
    below = error.__cause__ or error.__context__
    if not isinstance(below, requests.RequestException):
        return error.user_message or ""
    url = getattr(getattr(below, "request", None), "url", None) or ""
    text = f"{type(below).__name__} {below}".lower()
    why = next((words for part, words in UNREACHED if part in text), "the connection failed")
    return f"no answer from {urlsplit(url).netloc or 'the address'}: {why}"


def _kind(error: stripe.StripeError) -> Kind:
    if isinstance(error, stripe.APIConnectionError):
        below = error.__cause__ or error.__context__
        return Kind.TIMEOUT if isinstance(below, requests.Timeout) else Kind.CONNECTION
    if isinstance(error, stripe.AuthenticationError) and error.http_status is None:
        return Kind.NO_KEY
    return Kind.ANSWER
