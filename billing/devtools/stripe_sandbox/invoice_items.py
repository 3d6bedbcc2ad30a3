"""Invoice items: an amount, or a quantity at a unit amount or a price."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from billing.devtools.stripe_sandbox import errors
from billing.devtools.stripe_sandbox.clock import MovableClock
from billing.devtools.stripe_sandbox.customers import Customers
from billing.devtools.stripe_sandbox.errors import JsonObject
from billing.devtools.stripe_sandbox.events import Events
from billing.devtools.stripe_sandbox.ids import Ids
from billing.devtools.stripe_sandbox.invoice_objects import item_object, pricing_of
from billing.devtools.stripe_sandbox.invoices import Invoices
from billing.devtools.stripe_sandbox.prices import Prices

_WAYS = ("amount", "unit_amount_decimal", "pricing")


class InvoiceItems:
    """The items of this sandbox: on an invoice, or pending for a customer's next one."""

    def __init__(
        self,
        clock: MovableClock,
        ids: Ids,
        events: Events,
        customers: Customers,
        prices: Prices,
        invoices: Invoices,
    ) -> None:
        self._clock = clock
        self._ids = ids
        self._events = events
        self._customers = customers
        self._prices = prices
        self._invoices = invoices
        self._by_id: dict[str, JsonObject] = {}

    def create(self, params: dict[str, Any]) -> JsonObject:
        """A new item, on a draft where ``invoice`` names one.

        Raises:
            Refusal: The draft is final or full, or the amount is not said in exactly one way.
        """
        invoice = None
        if "invoice" in params:
            invoice = self._invoices.draft(params["invoice"], param="invoice")
        customer = self._customer(params, invoice)
        pricing, unit, currency = self._pricing(params, invoice)
        quantity = params.get("quantity_decimal", Decimal(params.get("quantity", 1)))
        amount = int((unit * quantity).quantize(Decimal(1), ROUND_HALF_UP))
        item = item_object(
            self._ids.new("ii"),
            customer=customer,
            invoice=invoice["id"] if invoice else None,
            amount=amount,
            quantity=int(quantity),
            quantity_decimal=format(quantity, "f"),
            pricing=pricing,
            created=int(self._clock.seconds()),
            params={**params, "currency": currency},
        )
        if invoice is not None:
            self._invoices.add_line(invoice, item)
        self._by_id[item["id"]] = item
        self._events.snapshot("invoiceitem.created", item)
        return item

    def retrieve(self, item_id: str) -> JsonObject:
        """The item.

        Raises:
            Refusal: There is none.
        """
        if item_id not in self._by_id:
            raise errors.no_such("invoiceitem", item_id)
        return self._by_id[item_id]

    def delete(self, item_id: str) -> JsonObject:
        """Delete an item that is pending or on a draft."""
        item = self.retrieve(item_id)
        if item["invoice"] is not None:
            self._invoices.remove_line(self._invoices.draft(item["invoice"]), item_id)
        del self._by_id[item_id]
        self._events.snapshot("invoiceitem.deleted", item)
        return {"id": item_id, "object": "invoiceitem", "deleted": True}

    def newest(self, customer: str | None, invoice: str | None) -> list[JsonObject]:
        """The items of a customer and an invoice (None: any), newest first."""
        return [
            item
            for item in reversed(self._by_id.values())
            if customer in {None, item["customer"]} and invoice in {None, item["invoice"]}
        ]

    def collect_pending(self, invoice: JsonObject) -> None:
        """Put the customer's pending items of the invoice's currency on it, oldest first."""
        for item in list(self._by_id.values()):
            mine = item["customer"] == invoice["customer"] and item["invoice"] is None
            if mine and item["currency"] == invoice["currency"]:
                self._invoices.add_line(invoice, item)
                item["invoice"] = invoice["id"]

    def _customer(self, params: dict[str, Any], invoice: JsonObject | None) -> str:
        if "customer" not in params:
            if invoice is None:
                raise errors.missing("customer")
            return str(invoice["customer"])
        customer: str = self._customers.given(params["customer"])["id"]
        if invoice is not None and customer != invoice["customer"]:
            raise errors.failed(
                f"The invoice {invoice['id']} belongs to another customer.", param="customer"
            )
        return customer

    def _pricing(
        self, params: dict[str, Any], invoice: JsonObject | None
    ) -> tuple[JsonObject, Decimal, str]:
        ways = [way for way in _WAYS if way in params]
        if len(ways) != 1:
            raise errors.parameter(
                "Give exactly one of amount, unit_amount_decimal and pricing[price].", "amount"
            )
        if "amount" in params and ("quantity" in params or "quantity_decimal" in params):
            raise errors.parameter("amount is for the whole item; leave quantity out.", "quantity")
        default = invoice["currency"] if invoice else "usd"
        price = self._named_price(params)
        currency = str(price["currency"] if price else params.get("currency", default))
        if invoice is not None and currency != invoice["currency"]:
            raise errors.failed(
                f"The invoice {invoice['id']} is in {invoice['currency']}, the item in {currency}.",
                param="currency",
            )
        if price is None:
            unit = Decimal(params.get("unit_amount_decimal", params.get("amount", 0)))
            product = self._ids.new("prod")
            price = self._prices.one_time(format(unit, "f"), currency, product, active=False)
        return pricing_of(price), Decimal(price["unit_amount_decimal"]), currency

    def _named_price(self, params: dict[str, Any]) -> JsonObject | None:
        if "pricing" not in params:
            return None
        price = self._prices.given(params["pricing"]["price"], "pricing[price]")
        if price["type"] != "one_time":
            raise errors.failed(
                "The price specified is set to `type=recurring` but this field only accepts prices "
                "with `type=one_time`.",
                param="pricing[price]",
            )
        return price
