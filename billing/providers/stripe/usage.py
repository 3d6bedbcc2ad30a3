"""Usage at Stripe: figures sent as meter events, and read back as hourly summaries."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import stripe

from billing.providers.builtin_checks import refusal
from billing.providers.port import ProviderAnswer, ProviderCause, UsageReport
from billing.providers.report_value import fits, value_text
from billing.providers.stripe.client import (
    PAGE,
    StripeUnanswered,
    asking,
    failure_of,
    instant_of,
    is_missing,
)
from billing.providers.stripe.errors import cause_of
from billing.providers.stripe.meters import CUSTOMER_KEY, VALUE_KEY, StripeMeters


class StripeUsage:
    """Figures of meters.

    Args:
        client: The client of stripe-python. May be used by several threads.
        meters: Finds a meter's id.
        new_key: Makes the Idempotency-Key of each attempt to report.
    """

    def __init__(
        self,
        client: stripe.StripeClient,
        meters: StripeMeters,
        new_key: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self._billing = client.v1.billing
        self._meters = meters
        self._new_key = new_key

    def report(self, report: UsageReport) -> ProviderAnswer:
        """Send one figure; see ``port.Provider.report_usage``."""
        refused = refusal(report)
        if refused is not None:
            return refused
        params: Any = {
            "event_name": report.meter,
            "payload": {CUSTOMER_KEY: report.customer_ref, VALUE_KEY: value_text(report.value)},
            "identifier": report.identifier,
            "timestamp": int(report.timestamp.timestamp()),
        }
        # Stripe replays a 500 for its Idempotency-Key; the identifier is what makes it once.
        options: Any = {"idempotency_key": self._new_key()}
        try:
            self._billing.meter_events.create(params, options)
        except stripe.StripeError as error:
            failure = failure_of(error)
            return ProviderAnswer(cause=cause_of(failure), detail=failure.message)
        return ProviderAnswer(cause=ProviderCause.TAKEN)

    def read_back(self, customer_ref: str, meter: str, day: date) -> Mapping[datetime, int]:
        """The figures of a UTC day; see ``port.Provider.read_back``.

        Raises:
            StripeUnanswered: Stripe did not answer, the meter is not there, the customer is deleted
                (its usage cannot be read any more), or a figure is none of ours.
        """
        start = datetime.combine(day, time(), UTC)
        params: Any = {
            "customer": customer_ref,
            "start_time": int(start.timestamp()),
            "end_time": int((start + timedelta(days=1)).timestamp()),
            "value_grouping_window": "hour",
            "limit": PAGE,
        }
        with asking():
            meter_id = self._meters.id_of(meter)
            if not meter_id:
                raise StripeUnanswered(ProviderCause.METER_MISSING, f"there is no meter {meter}")
            try:
                found = self._billing.meters.event_summaries.list(meter_id, params)
                summaries = list(found.auto_paging_iter())
            except stripe.InvalidRequestError as error:
                if is_missing(error) and failure_of(error).param == "customer":
                    detail = f"{customer_ref} is not there or deleted, its usage cannot be read"
                    raise StripeUnanswered(ProviderCause.CUSTOMER_MISSING, detail) from error
                raise
        return {instant_of(one.start_time): exact(one.aggregated_value) for one in summaries}


def exact(value: float) -> int:
    """Turn a figure of Stripe's, a JSON number, into the integer it stands for. Pure.

    Raises:
        StripeUnanswered: It is a fraction, or has more digits than a double keeps: not ours.
    """
    whole = math.isfinite(value) and value == int(value)
    if not whole or not fits(int(value)):
        detail = f"a figure is {value!r}; ours are integers of at most 15 digits"
        raise StripeUnanswered(ProviderCause.INVALID_VALUE, detail)
    return int(value)
