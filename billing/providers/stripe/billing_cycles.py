"""Invoices that Stripe makes by itself: what the end of a billing cycle billed of our meters.

A line belongs to a meter by its price (``recurring.meter``), never by what kind of line it is: the
usage of a price that was taken off a subscription is billed by an invoice item. Prices and event
names of meters never change, so each is asked for once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Final

import stripe

from billing.core.errors import NotFound
from billing.providers.port import MeteredLine, ProviderCause, ProviderInvoice
from billing.providers.stripe.client import (
    PAGE,
    StripeUnanswered,
    asking,
    id_of,
    instant_of,
    is_missing,
    metadata_of,
)
from billing.providers.stripe.invoices import KEY

_OF_A_SUBSCRIPTION: Final = "subscription_details"
_DELETED: Final = "invoice.deleted"


class StripeCycles:
    """Reads the invoices of subscriptions that bill metered usage; it changes nothing.

    Args:
        client: The client of stripe-python. May be used by several threads.
        ours: Whether a meter of that event name is one of ours. Others bill what they like: their
            lines are left out, and nothing about them can stop the reading of ours.
    """

    def __init__(
        self, client: stripe.StripeClient, ours: Callable[[str], bool] = lambda _: True
    ) -> None:
        self._v1 = client.v1
        self._ours = ours
        # A key that is there twice has the same value twice: threads need no lock.
        self._meter_of_price: dict[str, str | None] = {}
        self._name_of_meter: dict[str, str] = {}

    def since(self, created: datetime) -> list[ProviderInvoice]:
        """Those created at or after ``created`` (to the second), newest first.

        Raises:
            StripeUnanswered: Stripe did not answer, or one bills a quantity that is none of ours.
        """
        params: Any = {"created": {"gte": int(created.timestamp())}, "limit": PAGE}
        with asking():
            listed = self._v1.invoices.list(params).auto_paging_iter()
            found = [(invoice, self._lines(invoice)) for invoice in listed if _cycle(invoice)]
        return [invoice_of(invoice, lines) for invoice, lines in found if lines]

    def one(self, provider_id: str) -> ProviderInvoice:
        """One of them as it stands now; a draft that was deleted has no lines.

        Raises:
            NotFound: There is none, or it bills no metered usage, or it is one of ours.
            StripeUnanswered: As above.
        """
        with asking():
            invoice = self._there(provider_id)
            if invoice is None:
                return self._deleted(provider_id)
            lines = self._lines(invoice) if _cycle(invoice) else []
        if not lines:
            raise _none(provider_id)
        return invoice_of(invoice, lines)

    def _there(self, provider_id: str) -> stripe.Invoice | None:
        try:
            invoice = self._v1.invoices.retrieve(provider_id)
        except stripe.InvalidRequestError as error:
            if is_missing(error):
                return None
            raise
        return None if _optional(invoice, "deleted") else invoice

    def _deleted(self, provider_id: str) -> ProviderInvoice:
        """Find a deleted draft by its event, which Stripe keeps for 30 days."""
        params: Any = {"type": _DELETED, "limit": PAGE}
        for event in self._v1.events.list(params).auto_paging_iter():
            invoice: Any = event.data.object
            if invoice.id == provider_id and _cycle(invoice):
                return invoice_of(invoice, (), status="deleted")
        raise _none(provider_id)

    def _lines(self, invoice: stripe.Invoice) -> list[MeteredLine]:
        metered = []
        for line in self._every_line(invoice):
            price = price_of(line)
            meter = self._meter(price) if price else None
            if meter is not None:
                metered.append((meter, line))
        return summed(invoice.id, metered)

    def _every_line(self, invoice: stripe.Invoice) -> Iterable[stripe.InvoiceLineItem]:
        # An invoice shows its first lines.
        if not invoice.lines.has_more:
            return invoice.lines.data
        return self._v1.invoices.line_items.list(invoice.id, {"limit": PAGE}).auto_paging_iter()

    def _meter(self, price_id: str) -> str | None:
        """The event name of our meter that a price reads; None where it reads none of ours."""
        if price_id not in self._meter_of_price:
            price = self._v1.prices.retrieve(price_id)
            meter_id = meter_of_price(price)
            name = self._name(meter_id) if meter_id is not None else None
            if name is not None and self._ours(name):
                check_undivided(price)
            else:
                name = None
            self._meter_of_price[price_id] = name
        return self._meter_of_price[price_id]

    def _name(self, meter_id: str) -> str:
        if meter_id not in self._name_of_meter:
            meter = self._v1.billing.meters.retrieve(meter_id)
            self._name_of_meter[meter_id] = meter.event_name
        return self._name_of_meter[meter_id]


def invoice_of(
    invoice: Any,  # noqa: ANN401 - an invoice of Stripe's, from itself or from an event
    lines: Sequence[MeteredLine],
    *,
    status: str | None = None,
) -> ProviderInvoice:
    """An invoice in our words. Pure.

    A payment counts as failed while the invoice is open and ``attempt_count`` tells of an attempt.
    ``attempted`` would not do: it is true, too, where there was nothing to collect. A debit that
    takes days counts as failed until it has come and the invoice is paid.
    """
    finalised = _optional(invoice.status_transitions, "finalized_at")
    return ProviderInvoice(
        provider_id=invoice.id,
        customer_ref=id_of(invoice.customer),
        status=status or str(_optional(invoice, "status") or "draft"),
        currency=invoice.currency.upper(),
        total_minor=invoice.total,
        period_start=instant_of(invoice.period_start),
        period_end=instant_of(invoice.period_end),
        finalised_at=None if finalised is None else instant_of(finalised),
        payment_failed=invoice.status == "open" and invoice.attempt_count > 0,
        lines=tuple(lines),
    )


def summed(
    invoice_id: str, metered: Iterable[tuple[str, stripe.InvoiceLineItem]]
) -> list[MeteredLine]:
    """Metered lines with the names of their meters, as one per meter and period. Pure.

    Raises:
        StripeUnanswered: See ``quantity_of``.
    """
    sums: defaultdict[tuple[str, int, int], int] = defaultdict(int)
    for meter, line in metered:
        # Stripe calls the end inclusive; the next period begins at the very same second.
        sums[meter, line.period.start, line.period.end] += quantity_of(line, invoice_id, meter)
    return [
        MeteredLine(
            meter=meter, period_start=instant_of(start), period_end=instant_of(end), value=value
        )
        for (meter, start, end), value in sums.items()
    ]


def price_of(line: stripe.InvoiceLineItem) -> str:
    """The id of a line's price; empty where it has none. Pure."""
    details = _optional(_optional(line, "pricing"), "price_details")
    return id_of(details.price) if details is not None else ""


def meter_of_price(price: stripe.Price) -> str | None:
    """The id of the meter that a price reads; None where it reads none. Pure."""
    meter: str | None = _optional(_optional(price, "recurring"), "meter")
    return meter


def check_undivided(price: stripe.Price) -> None:
    """Refuse a price of a meter of ours whose lines do not tell what was billed. Pure.

    Raises:
        StripeUnanswered: It divides usage before it bills.
    """
    if _optional(price, "transform_quantity") is not None:
        detail = (
            f"the price {price.id} divides usage (transform_quantity), so what its invoices bill "
            "cannot be compared with what was reported; use a price per unit, with decimals"
        )
        raise StripeUnanswered(ProviderCause.INVALID_VALUE, detail)


def quantity_of(line: stripe.InvoiceLineItem, invoice_id: str, meter: str) -> int:
    """The quantity that a line bills, in the meter's smallest unit. Pure.

    Raises:
        StripeUnanswered: A fraction, or nothing: a meter of ours takes integers only.
    """
    # ``quantity`` has its decimals cut off, so it cannot tell.
    exact = _optional(line, "quantity_decimal")
    if exact is None:
        exact = _optional(line, "quantity")
    if exact is None or exact != int(exact):
        detail = (
            f"the invoice {invoice_id} bills {exact} of the meter {meter}; ours count integers "
            "only, so something else reports to this meter. Nothing of this invoice was taken over"
        )
        raise StripeUnanswered(ProviderCause.INVALID_VALUE, detail)
    return int(exact)


def _cycle(invoice: Any) -> bool:  # noqa: ANN401 - as in invoice_of
    """Whether a subscription made it; one of ours never counts, whatever it is attached to."""
    of_subscription = _optional(_optional(invoice, "parent"), "type") == _OF_A_SUBSCRIPTION
    return of_subscription and KEY not in metadata_of(invoice)


def _none(provider_id: str) -> NotFound:
    return NotFound(
        "invoice", provider_id, "Stripe has none of this id that bills metered usage by itself"
    )


def _optional(thing: Any, name: str) -> Any:  # noqa: ANN401 - any object of Stripe's, or None
    """A field that Stripe's description does not promise; None where there is none."""
    return getattr(thing, name, None)
