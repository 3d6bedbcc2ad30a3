"""Stripe: billing meters with windows of an hour, customers found by metadata, invoices of ours.

A figure is the absolute total of its hour: Stripe counts the last one it took, so that a resend can
never add. A 2xx only says that the event was taken; what the meter makes of it is read back.
"""

from __future__ import annotations

import hashlib
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final

import stripe

from billing.providers.builtin_checks import refusal
from billing.providers.port import (
    Invoice,
    InvoiceLine,
    MeterCheck,
    ProviderAnswer,
    ProviderCause,
    ProviderInvoice,
    ProviderMeter,
    UsageReport,
)
from billing.providers.report_value import fits, value_text
from billing.providers.stripe.billing_cycles import StripeCycles
from billing.providers.stripe.client import (
    PAGE,
    StripeUnanswered,
    asking,
    idempotency_key,
    is_missing,
    metadata_of,
    once,
)
from billing.providers.stripe.errors import cause_of, failure_of
from billing.providers.stripe.invoices import StripeInvoices

CUSTOMER_KEY: Final = "stripe_customer_id"
VALUE_KEY: Final = "value"
CUSTOMER_METADATA: Final = "weighbridge_customer"
"""The metadata of a Stripe customer that names ours."""


class StripeProvider:
    """Stripe through its public API.

    Args:
        client: From ``stripe_calls.client_of``. May be used by several threads.
        new_key: Makes the Idempotency-Key of each attempt to report.
        ours: Whether a meter of that event name is ours; see ``StripeCycles``.
    """

    name = "stripe"
    max_age: timedelta | None = timedelta(days=34, hours=12)
    """Stripe's 35 calendar days, less a margin."""

    def __init__(
        self,
        client: stripe.StripeClient,
        *,
        new_key: Callable[[], str] = lambda: uuid.uuid4().hex,
        ours: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._v1 = client.v1
        self._new_key = new_key
        self._invoices = StripeInvoices(client)
        self._cycles = StripeCycles(client, ours)
        self._meter_ids: dict[str, str] = {}

    def ensure_meters(
        self, meters: Sequence[ProviderMeter], *, dry_run: bool = False
    ) -> list[MeterCheck]:
        """Compare formula, window, state and payload keys; see ``provider.Provider``.

        A meter somebody has deactivated is a difference and is not made anew.

        Raises:
            StripeUnanswered: Stripe did not answer, or refuses a new meter.
        """
        with asking():
            there = self._meters()
            self._meter_ids = {name: found.id for name, found in there.items()}
            return [self._checked(meter, there.get(meter.name), dry_run) for meter in meters]

    def link_customer(self, customer: str, name: str, *, dry_run: bool = False) -> str:
        """The id of the Stripe customer whose metadata names ours; see ``provider.Provider``.

        Returns:
            The id; empty with ``dry_run`` where there is none yet.

        Raises:
            StripeUnanswered: Stripe did not answer.
        """
        quoted = customer.replace("\\", "\\\\").replace("'", "\\'")
        query = f"metadata['{CUSTOMER_METADATA}']:'{quoted}'"
        with asking():
            hits = self._v1.customers.search({"query": query, "limit": PAGE}).data
            if hits:
                return _oldest(hits).id
            if dry_run:
                return ""
            # Search lags behind by a minute or so; the Idempotency-Key bridges that.
            params: Any = {"name": name or customer, "metadata": {CUSTOMER_METADATA: customer}}
            return once(
                idempotency_key("cus", customer),
                lambda options: self._v1.customers.create(params, options),
                lambda: self._customer_of(customer),
            ).id

    def report_usage(self, report: UsageReport) -> ProviderAnswer:
        """Send one figure; see ``provider.Provider``."""
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
            self._v1.billing.meter_events.create(params, options)
        except stripe.StripeError as error:
            failure = failure_of(error)
            return ProviderAnswer(cause=cause_of(failure), detail=failure.message)
        return ProviderAnswer(cause=ProviderCause.TAKEN)

    def read_back(self, customer_ref: str, meter: str, day: date) -> Mapping[datetime, int]:
        """The figures of a UTC day; see ``provider.Provider``.

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
            meter_id = self._meter_id(meter)
            if not meter_id:
                raise StripeUnanswered(ProviderCause.METER_MISSING, f"there is no meter {meter}")
            try:
                found = self._v1.billing.meters.event_summaries.list(meter_id, params)
                summaries = list(found.auto_paging_iter())
            except stripe.InvalidRequestError as error:
                if is_missing(error) and failure_of(error).param == "customer":
                    detail = f"{customer_ref} is not there or deleted, its usage cannot be read"
                    raise StripeUnanswered(ProviderCause.CUSTOMER_MISSING, detail) from error
                raise
        return {
            datetime.fromtimestamp(one.start_time, UTC): exact(one.aggregated_value)
            for one in summaries
        }

    def open_invoice(
        self, key: str, customer_ref: str, currency: str, lines: Sequence[InvoiceLine]
    ) -> Invoice:
        """A draft with exactly these lines; see ``StripeInvoices.open``."""
        return self._invoices.open(key, customer_ref, currency, lines)

    def finalise_invoice(self, provider_id: str) -> Invoice:
        """Make a draft final; see ``StripeInvoices.finalise``."""
        return self._invoices.finalise(provider_id)

    def invoices_since(self, created: datetime) -> Sequence[ProviderInvoice]:
        """Invoices of subscriptions, newest first; see ``StripeCycles.since``."""
        return self._cycles.since(created)

    def provider_invoice(self, provider_id: str) -> ProviderInvoice:
        """One of them as it stands now; see ``StripeCycles.one``."""
        return self._cycles.one(provider_id)

    def _meters(self) -> dict[str, Any]:
        """Every meter by its event name: the active one, else the newest of the others."""
        chosen: dict[str, Any] = {}
        for found in self._v1.billing.meters.list({"limit": PAGE}).auto_paging_iter():
            before = chosen.get(found.event_name)
            if before is None or _rank(found) > _rank(before):
                chosen[found.event_name] = found
        return chosen

    def _meter_id(self, name: str) -> str:
        if name not in self._meter_ids:
            there = self._meters()
            self._meter_ids = {each: found.id for each, found in there.items()}
        return self._meter_ids.get(name, "")

    def _checked(self, meter: ProviderMeter, found: Any, dry_run: bool) -> MeterCheck:  # noqa: ANN401 - a meter of Stripe's
        created = found is None and not dry_run
        if created:
            found = self._made(meter)
            self._meter_ids[meter.name] = found.id
        if found is None:
            return MeterCheck(meter=meter, provider_id="", created=False)
        return MeterCheck(
            meter=meter,
            provider_id=found.id,
            created=created,
            differences=differences(found),
        )

    def _made(self, meter: ProviderMeter) -> stripe.billing.Meter:
        params: Any = {
            "display_name": meter.display_name,
            "event_name": meter.name,
            "default_aggregation": {"formula": "sum"},
            "customer_mapping": {"type": "by_id", "event_payload_key": CUSTOMER_KEY},
            "value_settings": {"event_payload_key": VALUE_KEY},
            "event_time_window": "hour",
        }
        content = hashlib.sha256(repr(sorted(params.items())).encode()).hexdigest()[:16]
        made: stripe.billing.Meter = once(
            idempotency_key("meter", meter.name, content),
            lambda options: self._v1.billing.meters.create(params, options),
            lambda: self._meters().get(meter.name),
        )
        return made

    def _customer_of(self, customer: str) -> stripe.Customer | None:
        """Looks at every customer: search may not know yet, the list does."""
        listed = self._v1.customers.list({"limit": PAGE}).auto_paging_iter()
        hits = [one for one in listed if metadata_of(one).get(CUSTOMER_METADATA) == customer]
        return _oldest(hits) if hits else None


def differences(found: Any) -> tuple[str, ...]:  # noqa: ANN401 - a meter of Stripe's
    """What of a meter at Stripe would count otherwise than is needed. Pure."""
    compared = (
        ("status", found.status, "active"),
        ("default_aggregation.formula", found.default_aggregation.formula, "sum"),
        ("event_time_window", found.event_time_window, "hour"),
        ("customer_mapping.type", found.customer_mapping.type, "by_id"),
        (
            "customer_mapping.event_payload_key",
            found.customer_mapping.event_payload_key,
            CUSTOMER_KEY,
        ),
        ("value_settings.event_payload_key", found.value_settings.event_payload_key, VALUE_KEY),
    )
    return tuple(
        f"{field} is {is_or_none or 'none'}, needed {needed or 'none'}"
        for field, is_or_none, needed in compared
        if is_or_none != needed
    )


def exact(value: float) -> int:
    """A figure as Stripe tells it, a JSON number, as the integer it stands for. Pure.

    Raises:
        StripeUnanswered: It is a fraction, or has more digits than a double keeps: not ours.
    """
    whole = math.isfinite(value) and value == int(value)
    if not whole or not fits(int(value)):
        detail = f"a figure is {value!r}; ours are integers of at most 15 digits"
        raise StripeUnanswered(ProviderCause.INVALID_VALUE, detail)
    return int(value)


def _rank(meter: Any) -> tuple[bool, int]:  # noqa: ANN401 - a meter of Stripe's
    return meter.status == "active", meter.created


def _oldest(customers: Sequence[stripe.Customer]) -> stripe.Customer:
    # Of several, every process has to take the same.
    return min(customers, key=lambda one: (one.created, one.id))
