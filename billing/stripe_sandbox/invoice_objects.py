"""What an invoice, its lines and its items look like on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from billing.stripe_sandbox.errors import JsonObject

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


def line_object(line_id: str, invoice_id: str, item: JsonObject) -> JsonObject:
    """The invoice line that an item becomes."""
    return {
        "id": line_id,
        "object": "line_item",
        "amount": item["amount"],
        "currency": item["currency"],
        "description": item["description"],
        "discount_amounts": [],
        "discountable": item["discountable"],
        "discounts": [],
        "invoice": invoice_id,
        "livemode": False,
        "metadata": dict(item["metadata"]),
        "parent": {
            "invoice_item_details": {
                "invoice_item": item["id"],
                "proration": False,
                "proration_details": {"credited_items": None},
                "subscription": None,
            },
            "subscription_item_details": None,
            "type": "invoice_item_details",
        },
        "period": dict(item["period"]),
        "pretax_credit_amounts": [],
        "pricing": item["pricing"],
        "quantity": item["quantity"],
        "quantity_decimal": item["quantity_decimal"],
        "subtotal": item["amount"],
        "taxes": [],
    }
