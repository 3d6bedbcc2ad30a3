"""What an invoice, its lines and its items look like on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Final

from billing.devtools.stripe_sandbox.errors import JsonObject

AUTO_ADVANCE_SECONDS: Final = 3_600
"""How long after its creation Stripe finalizes a draft with ``auto_advance``."""

_NOTHING = (
    "account_country",
    "account_name",
    "account_tax_ids",
    "application",
    "custom_fields",
    "customer_address",
    "customer_phone",
    "customer_shipping",
    "default_payment_method",
    "default_source",
    "effective_at",
    "ending_balance",
    "from_invoice",
    "hosted_invoice_url",
    "invoice_pdf",
    "last_finalization_error",
    "latest_revision",
    "next_payment_attempt",
    "number",
    "on_behalf_of",
    "parent",
    "receipt_number",
    "rendering",
    "shipping_cost",
    "shipping_details",
    "statement_descriptor",
    "test_clock",
    "webhooks_delivered_at",
)
"""Fields that Stripe gives as null where there is nothing to say, and here there never is."""


def invoice_object(
    invoice_id: str, customer: JsonObject, params: Mapping[str, Any], created: int, due: int | None
) -> JsonObject:
    """A draft; its lines and totals are filled in by whoever keeps them."""
    auto = params.get("auto_advance", False)
    hour_later = created + AUTO_ADVANCE_SECONDS
    return {
        **dict.fromkeys(_NOTHING),
        "id": invoice_id,
        "object": "invoice",
        "amount_overpaid": 0,
        "amount_paid": 0,
        "amount_paid_off_stripe": 0,
        "amount_shipping": 0,
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": auto,
        "automatic_tax": {
            "disabled_reason": None,
            "enabled": False,
            "liability": None,
            "provider": None,
            "status": None,
        },
        "automatically_finalizes_at": params.get(
            "automatically_finalizes_at", hour_later if auto else None
        ),
        "billing_reason": "manual",
        "collection_method": params.get("collection_method", "charge_automatically"),
        "created": created,
        "currency": params.get("currency", "usd"),
        "customer": customer["id"],
        "customer_email": customer["email"],
        "customer_name": customer["name"],
        "customer_tax_exempt": "none",
        "customer_tax_ids": [],
        "default_tax_rates": [],
        "description": params.get("description"),
        "discounts": [],
        "due_date": due,
        "footer": params.get("footer"),
        "issuer": {"type": "self"},
        "livemode": False,
        "metadata": params.get("metadata", {}),
        "payment_settings": {
            "default_mandate": None,
            "payment_method_options": None,
            "payment_method_types": None,
        },
        "period_end": created,
        "period_start": created,
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
        "starting_balance": 0,
        "status": "draft",
        "status_transitions": {
            "finalized_at": None,
            "marked_uncollectible_at": None,
            "paid_at": None,
            "voided_at": None,
        },
        "total_discount_amounts": [],
        "total_pretax_credit_amounts": [],
        "total_taxes": [],
    }


def cycle_invoice(
    invoice_id: str,
    customer: JsonObject,
    *,
    subscription: str,
    currency: str,
    period: tuple[int, int],
    created: int,
    grace_seconds: int,
) -> JsonObject:
    """The draft at the end of a subscription's billing cycle, whose ``period`` is over."""
    params = {
        "auto_advance": True,
        "automatically_finalizes_at": created + grace_seconds,
        "currency": currency,
    }
    start, end = period
    return {
        **invoice_object(invoice_id, customer, params, created, None),
        "billing_reason": "subscription_cycle",
        "parent": {
            "quote_details": None,
            "subscription_details": {"metadata": {}, "subscription": subscription},
            "type": "subscription_details",
        },
        "period_end": end,
        "period_start": start,
    }


def item_object(
    item_id: str,
    *,
    customer: str,
    invoice: str | None,
    amount: int,
    quantity: int,
    quantity_decimal: str,
    pricing: JsonObject,
    created: int,
    params: Mapping[str, Any],
) -> JsonObject:
    """An invoice item."""
    return {
        "id": item_id,
        "object": "invoiceitem",
        "amount": amount,
        "currency": params["currency"],
        "customer": customer,
        "date": created,
        "description": params.get("description"),
        "discountable": params.get("discountable", amount > 0),
        "discounts": [],
        "invoice": invoice,
        "livemode": False,
        "metadata": params.get("metadata", {}),
        "net_amount": amount,
        "parent": None,
        "period": params.get("period", {"start": created, "end": created}),
        "pricing": pricing,
        "proration": False,
        "quantity": quantity,
        "quantity_decimal": quantity_decimal,
        "tax_rates": [],
        "test_clock": None,
    }


def pricing_of(price: JsonObject) -> JsonObject:
    """How an item or a line tells its price."""
    return {
        "price_details": {"price": price["id"], "product": price["product"]},
        "type": "price_details",
        "unit_amount_decimal": price["unit_amount_decimal"],
    }


def line_object(line_id: str, invoice_id: str, item: JsonObject) -> JsonObject:
    """The invoice line that an item becomes."""
    details = {
        "invoice_item": item["id"],
        "proration": False,
        "proration_details": {"credited_items": None},
        "subscription": None,
    }
    return {
        **_line(line_id, invoice_id, amount=item["amount"], currency=item["currency"]),
        "description": item["description"],
        "discountable": item["discountable"],
        "metadata": dict(item["metadata"]),
        "parent": {
            "invoice_item_details": details,
            "subscription_item_details": None,
            "type": "invoice_item_details",
        },
        "period": dict(item["period"]),
        "pricing": item["pricing"],
        "quantity": item["quantity"],
        "quantity_decimal": item["quantity_decimal"],
    }


def metered_line(
    line_id: str,
    invoice: JsonObject,
    *,
    item: str,
    price: JsonObject,
    meter: JsonObject,
    quantity: Decimal,
) -> JsonObject:
    """The line of a subscription's metered price: ``quantity`` units of the period that is over."""
    subscription = invoice["parent"]["subscription_details"]["subscription"]
    amount = quantity * Decimal(price["unit_amount_decimal"])
    details = {
        "invoice_item": None,
        "proration": False,
        "proration_details": {"credited_items": None},
        "subscription": subscription,
        "subscription_item": item,
    }
    return {
        **_line(
            line_id,
            invoice["id"],
            amount=int(amount.quantize(Decimal(1), ROUND_HALF_UP)),
            currency=invoice["currency"],
        ),
        "description": f"{quantity:f} \u00d7 {meter['display_name']}",
        "discountable": True,
        "metadata": {},
        "parent": {
            "invoice_item_details": None,
            "subscription_item_details": details,
            "type": "subscription_item_details",
        },
        "period": {"start": invoice["period_start"], "end": invoice["period_end"]},
        "pricing": pricing_of(price),
        # Stripe truncates the one and keeps the other.
        "quantity": int(quantity),
        "quantity_decimal": f"{quantity:f}",
        "subscription": subscription,
    }


def _line(line_id: str, invoice_id: str, *, amount: int, currency: str) -> JsonObject:
    return {
        "id": line_id,
        "object": "line_item",
        "amount": amount,
        "currency": currency,
        "discount_amounts": [],
        "discounts": [],
        "invoice": invoice_id,
        "livemode": False,
        "pretax_credit_amounts": [],
        "subtotal": amount,
        "taxes": [],
    }
