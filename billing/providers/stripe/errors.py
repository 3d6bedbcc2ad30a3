"""The meaning of each of Stripe's errors for a report: one table. Pure.

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

from billing.providers.port import ProviderCause

_BAD_REQUEST: Final = 400
_CONFLICT: Final = 409
_TOO_MANY: Final = 429
_SERVER: Final = 500


class StripeErrorKind(StrEnum):
    """The kind of failure."""

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

    kind: StripeErrorKind = StripeErrorKind.ANSWER
    status: int | None = None
    code: str = ""
    param: str = ""
    message: str = ""
    named_limit: bool = False
    replayed: bool = False


CODES: Final[Mapping[str, ProviderCause]] = {
    # Meter events: at once in v2, in error reports for v1.
    "duplicate_meter_event": ProviderCause.DUPLICATE_IDENTIFIER,
    "archived_meter": ProviderCause.METER_INACTIVE,
    "no_meter": ProviderCause.METER_MISSING,
    "meter_event_customer_not_found": ProviderCause.CUSTOMER_MISSING,
    "meter_event_no_customer_defined": ProviderCause.INVALID_REQUEST,
    "payload_no_customer_defined": ProviderCause.INVALID_REQUEST,
    "meter_event_invalid_value": ProviderCause.INVALID_VALUE,
    "payload_invalid_value": ProviderCause.INVALID_VALUE,
    "meter_event_value_not_found": ProviderCause.INVALID_VALUE,
    "payload_no_value_defined": ProviderCause.INVALID_VALUE,
    "meter_event_value_too_many_digits": ProviderCause.INVALID_VALUE,
    "meter_event_dimension_count_too_high": ProviderCause.INVALID_REQUEST,
    "missing_dimension_payload_keys": ProviderCause.INVALID_REQUEST,
    "timestamp_in_future": ProviderCause.IN_THE_FUTURE,
    "timestamp_too_far_in_past": ProviderCause.TOO_OLD,
    "too_many_concurrent_requests": ProviderCause.RATE_LIMITED,
    # Any request. What is not named here is an INVALID_REQUEST.
    "rate_limit": ProviderCause.RATE_LIMITED,
    "lock_timeout": ProviderCause.LOCK_TIMEOUT,
    "idempotency_key_in_use": ProviderCause.CONFLICT,
    "customer_deleted": ProviderCause.CUSTOMER_MISSING,
    "api_key_expired": ProviderCause.KEY_REFUSED,
    "platform_api_key_expired": ProviderCause.KEY_REFUSED,
    "secret_key_required": ProviderCause.KEY_REFUSED,
    "livemode_mismatch": ProviderCause.KEY_REFUSED,
}
"""Why, by the code of an error."""

SENTENCES: Final[tuple[tuple[str, ProviderCause], ...]] = (
    ("already exists with identifier", ProviderCause.DUPLICATE_IDENTIFIER),
    ("more than 35 days in past", ProviderCause.TOO_OLD),
    ("minutes in the future", ProviderCause.IN_THE_FUTURE),
    ("significant digits", ProviderCause.INVALID_VALUE),
    ("no such customer", ProviderCause.CUSTOMER_MISSING),
    ("no such billing meter", ProviderCause.METER_MISSING),
    ("no meter found", ProviderCause.METER_MISSING),
)
"""Why, by a part of the sentence (in lower case) of a refusal whose code says nothing."""

STATUSES: Final[Mapping[int, ProviderCause]] = {
    401: ProviderCause.KEY_REFUSED,
    403: ProviderCause.PERMISSION_REFUSED,
    408: ProviderCause.TIMED_OUT,
    _CONFLICT: ProviderCause.CONFLICT,
    424: ProviderCause.SERVER_ERROR,
    _TOO_MANY: ProviderCause.RATE_LIMITED,
}
"""Statuses that say it all. Others: below 400 and from 500 there is no definite answer; between
them a definite refusal."""

KINDS: Final[Mapping[StripeErrorKind, ProviderCause]] = {
    StripeErrorKind.TIMEOUT: ProviderCause.TIMED_OUT,
    StripeErrorKind.CONNECTION: ProviderCause.CONNECTION_FAILED,
    StripeErrorKind.NO_KEY: ProviderCause.KEY_REFUSED,
}


def cause_of(failure: Failure) -> ProviderCause:
    """The cause of a failure. Total: every failure has one."""
    if failure.kind in KINDS:
        return KINDS[failure.kind]
    status = failure.status
    if status == _TOO_MANY:
        # A 429 that names no limit is an object held by another request, with or without the code.
        lock = failure.code == "lock_timeout" or not (failure.named_limit or failure.code)
        return ProviderCause.LOCK_TIMEOUT if lock else ProviderCause.RATE_LIMITED
    if status is None:
        return ProviderCause.SERVER_ERROR
    if status in STATUSES:
        return STATUSES[status]
    if not _BAD_REQUEST <= status < _SERVER:
        return ProviderCause.SERVER_ERROR
    return _refusal(failure)


def cause_of_code(code: str) -> ProviderCause:
    """The cause by the code alone, as an error report gives it."""
    return CODES.get(code, ProviderCause.INVALID_REQUEST)


def _refusal(failure: Failure) -> ProviderCause:
    if failure.code in CODES:
        return CODES[failure.code]
    sentence = failure.message.lower()
    for part, cause in SENTENCES:
        if part in sentence:
            return cause
    if failure.code == "resource_missing" and failure.param == "customer":
        return ProviderCause.CUSTOMER_MISSING
    return ProviderCause.INVALID_REQUEST
