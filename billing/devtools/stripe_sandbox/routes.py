"""Which request does what: Stripe's paths and the functions behind them."""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from billing.devtools.stripe_sandbox import shapes
from billing.devtools.stripe_sandbox.errors import JsonObject
from billing.devtools.stripe_sandbox.paging import page, within
from billing.devtools.stripe_sandbox.params import Shape
from billing.devtools.stripe_sandbox.sandbox import Sandbox
from billing.devtools.stripe_sandbox.summaries import check_interval, summarise
from billing.devtools.stripe_sandbox.usage import as_v1
from billing.devtools.stripe_sandbox.v2 import V2_METER_EVENT, create_v2_meter_event


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A checked request: the id in its path, its parameters, whether a payment is declined."""

    id: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    decline: bool = False


@functools.cache
def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path))


Handler = Callable[[Sandbox, Call], JsonObject]


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint. ``path`` is written as in Stripe's description."""

    method: str
    path: str
    shape: Shape
    handler: Handler

    def fits(self, method: str, path: str) -> Mapping[str, str] | None:
        """The parts of the path in braces, if the request is for this endpoint."""
        if method != self.method:
            return None
        match = _pattern(self.path).fullmatch(path)
        return match.groupdict() if match else None


def _meter_list(box: Sandbox, call: Call) -> JsonObject:
    meters = box.meters.newest(call.params.get("status"))
    return page(meters, call.params, url="/v1/billing/meters", kind="billing meter")


def _meter_event(box: Sandbox, call: Call) -> JsonObject:
    return as_v1(box.usage.take(call.params))


def _adjustment(box: Sandbox, call: Call) -> JsonObject:
    identifier = call.params.get("cancel", {}).get("identifier", "")
    box.usage.cancel(call.params["event_name"], identifier)
    return {
        "object": "billing.meter_event_adjustment",
        "cancel": {"identifier": identifier},
        "event_name": call.params["event_name"],
        "livemode": False,
        "status": "pending",
        "type": "cancel",
    }


def _summaries(box: Sandbox, call: Call) -> JsonObject:
    given = call.params
    meter = box.meters.retrieve(call.id)
    start, end, grouping = (
        given["start_time"],
        given["end_time"],
        given.get("value_grouping_window"),
    )
    check_interval(start, end, grouping)
    customer: str = box.customers.given(given["customer"])["id"]
    counted = box.usage.figures.between(
        meter["id"], customer, start, end, arrived_by=box.usage.visible_before()
    )
    found = summarise(meter, customer, counted, start=start, end=end, grouping=grouping)
    url = f"/v1/billing/meters/{meter['id']}/event_summaries"
    return page(found, given, url=url, kind="meter event summary")


def _customer_list(box: Sandbox, call: Call) -> JsonObject:
    customers = box.customers.newest(call.params.get("email"))
    return page(customers, call.params, url="/v1/customers", kind="customer")


def _customer_search(box: Sandbox, call: Call) -> JsonObject:
    found = box.customers.search(call.params["query"])
    cursor = {"starting_after": call.params["page"]} if "page" in call.params else {}
    limit = {"limit": call.params["limit"]} if "limit" in call.params else {}
    url = "/v1/customers/search"
    one: JsonObject = page(found, {**cursor, **limit}, url=url, kind="customer")
    following = one["data"][-1]["id"] if one["has_more"] else None
    return {**one, "object": "search_result", "next_page": following}


def _invoice_create(box: Sandbox, call: Call) -> JsonObject:
    behaviour = call.params.pop("pending_invoice_items_behavior", "exclude")
    invoice = box.invoices.create(call.params)
    if behaviour == "include":
        box.items.collect_pending(invoice)
    return invoice


def _invoice_list(box: Sandbox, call: Call) -> JsonObject:
    names = call.params.keys() & {"customer", "status", "collection_method"}
    wanted = {name: call.params[name] for name in names}
    found = box.invoices.newest(wanted, call.params.get("created"))
    return page(found, call.params, url="/v1/invoices", kind="invoice")


def _invoice_lines(box: Sandbox, call: Call) -> JsonObject:
    lines = box.invoices.lines(call.id)
    return page(lines, call.params, url=f"/v1/invoices/{call.id}/lines", kind="line item")


def _item_list(box: Sandbox, call: Call) -> JsonObject:
    items = box.items.newest(call.params.get("customer"), call.params.get("invoice"))
    return page(items, call.params, url="/v1/invoiceitems", kind="invoiceitem")


def _grant_list(box: Sandbox, call: Call) -> JsonObject:
    grants = box.grants.newest(call.params.get("customer"))
    return page(grants, call.params, url="/v1/billing/credit_grants", kind="credit grant")


def _event_list(box: Sandbox, call: Call) -> JsonObject:
    given = call.params
    patterns = [given["type"]] if "type" in given else given.get("types", ["*"])
    found = [
        event
        for event in box.events.newest()
        if within(event["created"], given.get("created"))
        and any(fnmatch.fnmatchcase(event["type"], pattern) for pattern in patterns)
    ]
    return page(found, given, url="/v1/events", kind="event")


def _price_list(box: Sandbox, call: Call) -> JsonObject:
    return page(box.prices.newest(call.params), call.params, url="/v1/prices", kind="price")


_BILLING = "/v1/billing"
_METER = _BILLING + "/meters/{id}"
_CUSTOMER = "/v1/customers/{customer}"
_INVOICE = "/v1/invoices/{invoice}"
_ITEM = "/v1/invoiceitems/{invoiceitem}"

ROUTES: Final = (
    Route(
        "POST", f"{_BILLING}/meters", shapes.METER_CREATE, lambda b, c: b.meters.create(c.params)
    ),
    Route("GET", f"{_BILLING}/meters", shapes.METER_LIST, _meter_list),
    Route("GET", _METER, shapes.NOTHING, lambda b, c: b.meters.retrieve(c.id)),
    Route("POST", _METER, shapes.METER_UPDATE, lambda b, c: b.meters.update(c.id, c.params)),
    Route(
        "POST", f"{_METER}/deactivate", shapes.NOTHING, lambda b, c: b.meters.turn(c.id, "inactive")
    ),
    Route(
        "POST", f"{_METER}/reactivate", shapes.NOTHING, lambda b, c: b.meters.turn(c.id, "active")
    ),
    Route("GET", f"{_METER}/event_summaries", shapes.SUMMARIES, _summaries),
    Route("POST", f"{_BILLING}/meter_events", shapes.METER_EVENT, _meter_event),
    Route("POST", f"{_BILLING}/meter_event_adjustments", shapes.ADJUSTMENT, _adjustment),
    Route(
        "POST",
        "/v2/billing/meter_events",
        V2_METER_EVENT,
        lambda b, c: create_v2_meter_event(b, c.params),
    ),
    Route("GET", "/v2/core/events/{id}", shapes.BARE, lambda b, c: b.events.fetch(c.id)),
    Route("GET", "/v1/events", shapes.EVENT_LIST, _event_list),
    Route("GET", "/v1/events/{id}", shapes.NOTHING, lambda b, c: b.events.retrieve(c.id)),
    Route("GET", "/v1/customers/search", shapes.CUSTOMER_SEARCH, _customer_search),
    Route(
        "POST", "/v1/customers", shapes.CUSTOMER_CREATE, lambda b, c: b.customers.create(c.params)
    ),
    Route("GET", "/v1/customers", shapes.CUSTOMER_LIST, _customer_list),
    Route("GET", _CUSTOMER, shapes.NOTHING, lambda b, c: b.customers.retrieve(c.id)),
    Route(
        "POST", _CUSTOMER, shapes.CUSTOMER_UPDATE, lambda b, c: b.customers.update(c.id, c.params)
    ),
    Route("DELETE", _CUSTOMER, shapes.BARE, lambda b, c: b.delete_customer(c.id)),
    Route("POST", "/v1/invoices", shapes.INVOICE_CREATE, _invoice_create),
    Route("GET", "/v1/invoices", shapes.INVOICE_LIST, _invoice_list),
    Route("GET", _INVOICE, shapes.NOTHING, lambda b, c: b.invoices.retrieve(c.id)),
    Route("POST", _INVOICE, shapes.INVOICE_UPDATE, lambda b, c: b.invoices.update(c.id, c.params)),
    Route("DELETE", _INVOICE, shapes.BARE, lambda b, c: b.invoices.delete(c.id)),
    Route("GET", f"{_INVOICE}/lines", shapes.INVOICE_LINES, _invoice_lines),
    Route(
        "POST",
        f"{_INVOICE}/finalize",
        shapes.INVOICE_FINALIZE,
        lambda b, c: b.invoices.finalise(c.id),
    ),
    Route(
        "POST",
        f"{_INVOICE}/pay",
        shapes.INVOICE_PAY,
        lambda b, c: b.invoices.pay(c.id, decline=c.decline),
    ),
    Route("POST", f"{_INVOICE}/void", shapes.NOTHING, lambda b, c: b.invoices.void(c.id)),
    Route(
        "POST",
        f"{_INVOICE}/mark_uncollectible",
        shapes.NOTHING,
        lambda b, c: b.invoices.give_up(c.id),
    ),
    Route("GET", "/v1/prices", shapes.PRICE_LIST, _price_list),
    Route("GET", "/v1/prices/{price}", shapes.NOTHING, lambda b, c: b.prices.retrieve(c.id)),
    Route("POST", "/v1/invoiceitems", shapes.ITEM_CREATE, lambda b, c: b.items.create(c.params)),
    Route("GET", "/v1/invoiceitems", shapes.ITEM_LIST, _item_list),
    Route("GET", _ITEM, shapes.NOTHING, lambda b, c: b.items.retrieve(c.id)),
    Route("DELETE", _ITEM, shapes.BARE, lambda b, c: b.items.delete(c.id)),
    Route(
        "POST",
        f"{_BILLING}/credit_grants",
        shapes.GRANT_CREATE,
        lambda b, c: b.grants.create(c.params),
    ),
    Route("GET", f"{_BILLING}/credit_grants", shapes.GRANT_LIST, _grant_list),
    Route(
        "GET",
        f"{_BILLING}/credit_grants/{{id}}",
        shapes.NOTHING,
        lambda b, c: b.grants.retrieve(c.id),
    ),
    Route(
        "GET",
        "/v1/checkout/sessions/{session}",
        shapes.NOTHING,
        lambda b, c: b.checkouts.retrieve(c.id),
    ),
)
"""Every endpoint; where two fit, the first one is meant."""


def find(method: str, path: str) -> tuple[Route, str] | None:
    """The endpoint of a request and the id in its path (empty where it has none)."""
    for route in ROUTES:
        parts = route.fits(method, path)
        if parts is not None:
            return route, next(iter(parts.values()), "")
    return None
