"""The parameters of every endpoint, by the names in Stripe's description.

What the sandbox acts on has a check; what it does not is listed, so that sending it is refused with
a word, and only what Stripe does not know either is refused as unknown. A test compares these
names with Stripe's description.
"""

from __future__ import annotations

from typing import Final

from billing.devtools.stripe_sandbox.params import (
    PAGING,
    UNIX_TIME,
    Shape,
    boolean,
    choice,
    currency,
    decimal,
    integer,
    interval,
    metadata,
    nested,
    shape,
    strings,
    text,
    texts,
)

NOTHING: Final = shape()
BARE: Final = Shape()

METER_CREATE: Final = shape(
    {
        "customer_mapping": nested(
            Shape(
                {"event_payload_key": text(100), "type": choice("by_id")},
                frozenset({"event_payload_key", "type"}),
            )
        ),
        "default_aggregation": nested(
            Shape({"formula": choice("count", "last", "sum")}, frozenset({"formula"}))
        ),
        "display_name": text(250),
        "event_name": text(100),
        "event_time_window": choice("day", "hour"),
        "value_settings": nested(
            Shape({"event_payload_key": text(100)}, frozenset({"event_payload_key"}))
        ),
    },
    required="default_aggregation display_name event_name",
)
METER_UPDATE: Final = shape({"display_name": text(250)})
METER_LIST: Final = shape({**PAGING, "status": choice("active", "inactive")})
SUMMARIES: Final = shape(
    {
        **PAGING,
        "customer": text(),
        "end_time": UNIX_TIME,
        "start_time": UNIX_TIME,
        "value_grouping_window": choice("day", "hour"),
    },
    required="customer end_time start_time",
)
METER_EVENT: Final = shape(
    {
        "event_name": text(100),
        "identifier": text(100),
        "payload": strings,
        "timestamp": UNIX_TIME,
    },
    required="event_name payload",
)
ADJUSTMENT: Final = shape(
    {
        "cancel": nested(Shape({"identifier": text(100)})),
        "event_name": text(100),
        "type": choice("cancel"),
    },
    required="event_name type",
)

CUSTOMER: Final = shape(
    {
        "description": text(empty=True),
        "email": text(512, empty=True),
        "metadata": metadata,
        "name": text(256, empty=True),
        "phone": text(20, empty=True),
    },
    knows="address balance business_name cash_balance individual_name invoice_prefix "
    "invoice_settings next_invoice_sequence preferred_locales shipping source tax tax_exempt",
)
CUSTOMER_CREATE: Final = Shape(
    CUSTOMER.takes,
    CUSTOMER.required,
    CUSTOMER.knows | {"payment_method", "tax_id_data", "test_clock"},
)
CUSTOMER_UPDATE: Final = Shape(
    CUSTOMER.takes,
    CUSTOMER.required,
    CUSTOMER.knows
    | {
        "bank_account",
        "card",
        "default_alipay_account",
        "default_bank_account",
        "default_card",
        "default_source",
    },
)
CUSTOMER_LIST: Final = shape({**PAGING, "email": text(512)}, knows="created test_clock")
CUSTOMER_SEARCH: Final = shape(
    {"limit": PAGING["limit"], "page": text(), "query": text()}, required="query"
)

_INVOICE: Final = {
    "auto_advance": boolean,
    "automatically_finalizes_at": UNIX_TIME,
    "collection_method": choice("charge_automatically", "send_invoice"),
    "days_until_due": integer(minimum=0),
    "description": text(1500, empty=True),
    "due_date": UNIX_TIME,
    "footer": text(empty=True),
    "metadata": metadata,
}
_INVOICE_KNOWS: Final = (
    "account_tax_ids application_fee_amount automatic_tax custom_fields default_payment_method "
    "default_source default_tax_rates discounts effective_at issuer number on_behalf_of "
    "payment_settings rendering shipping_cost shipping_details statement_descriptor transfer_data"
)
INVOICE_CREATE: Final = shape(
    {
        **_INVOICE,
        "currency": currency,
        "customer": text(),
        "pending_invoice_items_behavior": choice("exclude", "include"),
    },
    required="customer",
    knows=_INVOICE_KNOWS + " customer_account from_invoice subscription",
)
INVOICE_UPDATE: Final = shape(
    {
        name: _INVOICE[name]
        for name in ("auto_advance", "automatically_finalizes_at", "description", "footer")
    }
    | {"metadata": metadata},
    knows=_INVOICE_KNOWS + " collection_method days_until_due due_date",
)
INVOICE_LIST: Final = shape(
    {
        **PAGING,
        "collection_method": choice("charge_automatically", "send_invoice"),
        "created": interval,
        "customer": text(),
        "status": choice("draft", "open", "paid", "uncollectible", "void"),
    },
    knows="customer_account due_date subscription",
)
INVOICE_LINES: Final = shape(PAGING)
INVOICE_FINALIZE: Final = shape({"auto_advance": boolean})
INVOICE_PAY: Final = shape(
    {"paid_out_of_band": boolean},
    knows="forgive mandate off_session payment_method source",
)

ITEM_CREATE: Final = shape(
    {
        "amount": integer(),
        "currency": currency,
        "customer": text(),
        "description": text(),
        "discountable": boolean,
        "invoice": text(),
        "metadata": metadata,
        "period": nested(
            Shape({"end": UNIX_TIME, "start": UNIX_TIME}, frozenset({"end", "start"}))
        ),
        "pricing": nested(Shape({"price": text()}, frozenset({"price"}))),
        "quantity": integer(minimum=0),
        "quantity_decimal": decimal(),
        "unit_amount_decimal": decimal(),
    },
    knows="customer_account discounts price_data subscription tax_behavior tax_code tax_rates",
)
ITEM_LIST: Final = shape(
    {**PAGING, "customer": text(), "invoice": text()}, knows="created customer_account pending"
)

GRANT_CREATE: Final = shape(
    {
        "amount": nested(
            Shape(
                {
                    "monetary": nested(
                        Shape(
                            {"currency": currency, "value": integer(minimum=1)},
                            frozenset({"currency", "value"}),
                        )
                    ),
                    "type": choice("monetary"),
                },
                frozenset({"monetary", "type"}),
            )
        ),
        "applicability_config": nested(
            Shape(
                {
                    "scope": nested(
                        Shape({"price_type": choice("metered")}, knows=frozenset({"prices"}))
                    )
                },
                frozenset({"scope"}),
            )
        ),
        "category": choice("paid", "promotional"),
        "customer": text(),
        "effective_at": UNIX_TIME,
        "expires_at": UNIX_TIME,
        "metadata": metadata,
        "name": text(100),
        "priority": integer(minimum=0, maximum=100),
    },
    required="amount applicability_config customer",
    knows="customer_account",
)
GRANT_LIST: Final = shape({**PAGING, "customer": text()}, knows="customer_account")
EVENT_LIST: Final = shape(
    {**PAGING, "created": interval, "type": text(), "types": texts}, knows="delivery_success"
)
PRICE_LIST: Final = shape(
    {
        **PAGING,
        "active": boolean,
        "created": interval,
        "currency": currency,
        "product": text(),
        "recurring": nested(
            Shape(
                {
                    "interval": choice("day", "month", "week", "year"),
                    "meter": text(),
                    "usage_type": choice("licensed", "metered"),
                }
            )
        ),
        "type": choice("one_time", "recurring"),
    },
    knows="lookup_keys",
)
