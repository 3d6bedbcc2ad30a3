"""Refusals: fail with ``QuotaExceeded``, or come back later, as the SKU says."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, Final, NoReturn

from celery.exceptions import Reject, Retry

from billing.core.admission import Admission
from billing.core.errors import DenialReason, QuotaUnavailable
from billing.core.sku import DenialPolicy, UnavailablePolicy
from billing.metering.meter import Meter
from workers.billing_header import HEADER, BillingHeader, header_of
from workers.errors import QuotaExceeded

_FINAL: Final = frozenset({DenialReason.REVOKED, DenialReason.UNKNOWN_CUSTOMER})
"""Refusals that coming back later cannot change."""


def refuse(task: Any, meter: Meter, admission: Admission) -> NoReturn:
    """End the run of a task whose admission was denied.

    Raises:
        QuotaExceeded: It is denied for good, and on record.
        Retry: It was sent back to its queue.
        Reject: It was to be sent back and the broker did not take it: the message itself goes back.
    """
    request, settings = task.request, task.metering.settings
    header = header_of(request)
    # An eager task has no queue to come back from.
    if header is None or request.is_eager:
        meter.record_denial(admission)
        raise _exceeded(admission)
    comes_back = _may_come_back(admission)
    if admission.contended and not comes_back and not header.deferrals:
        # Refused for good only if it still lacks credits when the leases of others are over.
        header = replace(header, deferrals=1)
        _defer(task, header, settings.lease_seconds + 1, _exceeded(admission))
    if not comes_back or header.deferrals >= settings.max_deferrals:
        meter.record_denial(admission)
        raise _exceeded(admission)
    if header.deferrals == 0 and admission.reason is not DenialReason.QUOTA_UNAVAILABLE:
        meter.record_denial(admission)
    header = replace(header, deferrals=header.deferrals + 1)
    _defer(task, header, settings.defer_seconds, _exceeded(admission))


def defer_unknown(task: Any, error: QuotaUnavailable) -> NoReturn:
    """Send a task back whose SKU cannot be read, as the default policy says.

    Raises:
        QuotaUnavailable: It cannot come back, or came back too often.
        Retry: It was sent back to its queue.
    """
    header = header_of(task.request)
    settings = task.metering.settings
    if header is None or task.request.is_eager or header.deferrals >= settings.max_deferrals:
        raise error
    _defer(task, replace(header, deferrals=header.deferrals + 1), settings.defer_seconds, error)


def _may_come_back(admission: Admission) -> bool:
    policy = admission.sku
    if admission.reason is DenialReason.QUOTA_UNAVAILABLE:
        return policy.unavailable_policy is not UnavailablePolicy.DENY
    return admission.reason not in _FINAL and policy.denial_policy is DenialPolicy.DEFER


def _defer(task: Any, header: BillingHeader, seconds: int, why: Exception) -> NoReturn:
    """Send the task back to its queue, without using up its own retries."""
    request = task.request
    # Spread, so that ten thousand deferred tasks do not come back in one moment.
    countdown = seconds * (1 + random.random() / 5)  # noqa: S311 - not a secret
    headers = {**(request.headers or {}), HEADER: header.to_message()}
    signature = task.signature_from_request(request, countdown=countdown, retries=request.retries)
    signature.set(headers=headers)
    try:
        signature.apply_async()
    except Exception as error:  # whatever the broker raises: the message must not be lost
        raise Reject(error, requeue=True) from error
    raise Retry(exc=why, when=countdown)  # type: ignore[arg-type]  # a float is a number


def _exceeded(admission: Admission) -> QuotaExceeded:
    reason = admission.reason
    return QuotaExceeded(
        reason.value if reason else "",
        admission.facts.customer,
        admission.sku.id,
        admission.needed_microcredits,
        admission.left_microcredits,
    )
