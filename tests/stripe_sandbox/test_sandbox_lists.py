"""Lists: invoices and events by time and type, prices by what they are for."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from stripe_api import Api

from billing.core.clock import ManualClock

HOUR = 3_600
DAY = 24 * HOUR


@pytest.fixture
def acme(api: Api) -> str:
    return api.customer(name="Acme")


@pytest.fixture
def now(api: Api) -> int:
    return int(api.box.clock.seconds())


@pytest.mark.parametrize(
    ("created", "found"),
    [
        ({"gte": 1}, [2, 1]),
        ({"gt": 1}, [2]),
        ({"lte": 1}, [1, 0]),
        ({"lt": 1}, [0]),
        ({"gt": 0, "lt": 2}, [1]),
        ({"gte": 3}, []),
        (1, [1]),
    ],
    ids=str,
)
def test_invoices_and_events_are_found_by_when_they_were_created(
    api: Api, acme: str, now: int, sandbox_clock: ManualClock, created: Any, found: list[int]
):
    for _ in range(3):
        api.post("/v1/invoices", {"customer": acme})
        sandbox_clock.advance(timedelta(hours=1))
    asked: Any = (
        {name: now + hours * HOUR for name, hours in created.items()}
        if isinstance(created, dict)
        else now + created * HOUR
    )
    expected = [now + hours * HOUR for hours in found]
    invoices = api.get("/v1/invoices", created=asked, customer=acme)["data"]
    assert [one["created"] for one in invoices] == expected
    events = api.get("/v1/events", created=asked, type="invoice.created")["data"]
    assert [one["created"] for one in events] == expected


@pytest.mark.parametrize("created", [{"since": 1}, {"gte": "x"}, "soon", -1], ids=str)
def test_an_interval_that_stripe_does_not_know_is_refused(api: Api, created: Any):
    assert api.get("/v1/invoices", created=created).status == 400


def test_events_are_found_by_their_types(api: Api, acme: str, now: int):
    api.meter()
    api.cycle(acme, now - DAY, now, grace_seconds=0)
    types = ["invoice.*", "customer.created"]
    found = api.get("/v1/events", types=types)["data"]
    assert [one["type"] for one in found] == [
        "invoice.paid",
        "invoice.finalized",
        "invoice.created",
        "customer.created",
    ]


def test_prices_are_listed_by_what_they_are_for(api: Api, acme: str, now: int):
    pages, searches = api.meter("pages"), api.meter("searches")
    api.cycle(acme, now - DAY, now, meters=["pages", "searches"], unit_amount_decimal="0.25")
    flat = api.box.prices.one_time("5", "eur")["id"]
    draft = api.post("/v1/invoices", {"customer": acme})["id"]
    inline = api.post("/v1/invoiceitems", {"customer": acme, "invoice": draft, "amount": 7})

    def listed(**params: Any) -> list[str | None]:
        prices = api.get("/v1/prices", **params)["data"]
        return [(one["recurring"] or {}).get("meter") for one in prices]

    assert listed(type="recurring") == [searches, pages]
    assert listed(recurring={"meter": pages}) == [pages]
    assert listed(recurring={"usage_type": "licensed"}) == []
    assert listed(active=False) == [None]
    assert listed(currency="eur", created={"gte": now}) == [None]
    assert listed(created={"gt": now}) == []
    assert api.get(f"/v1/prices/{flat}")["unit_amount"] == 5
    assert api.get("/v1/prices/price_none").status == 404
    made = api.get(f"/v1/prices/{inline['pricing']['price_details']['price']}")
    assert (made["unit_amount"], made["active"]) == (7, False)
    assert api.get("/v1/prices", type="recurring")["data"][0]["unit_amount"] is None


def test_an_item_takes_no_recurring_price(api: Api, acme: str, now: int):
    api.meter()
    line = api.cycle(acme, now - DAY, now, meters=["searches"])["lines"]["data"][0]
    price = line["pricing"]["price_details"]["price"]
    refused = api.post("/v1/invoiceitems", {"customer": acme, "pricing": {"price": price}})
    assert "type=recurring" in refused.error["message"]
