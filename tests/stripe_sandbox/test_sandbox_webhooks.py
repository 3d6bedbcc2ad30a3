"""What stripe-python makes of cycles, of what webhooks tell, and of what they lead to."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest
import stripe
from stripe_api import KEY, Control
from stripe_description import problems
from support import eventually

from billing.devtools.stripe_sandbox import SandboxServer

HOUR = 3_600
THIS_HOUR = int(time.time()) // HOUR * HOUR
PERIOD = {"period_start": THIS_HOUR - 24 * HOUR, "period_end": THIS_HOUR}
INVOICE = {"$ref": "#/components/schemas/invoice"}


@pytest.fixture
def customer(client: stripe.StripeClient) -> str:
    return client.v1.customers.create({"name": "Acme"}).id


@pytest.fixture
def meter(client: stripe.StripeClient) -> str:
    params: Any = {
        "display_name": "Searches",
        "event_name": "searches",
        "default_aggregation": {"formula": "sum"},
        "event_time_window": "hour",
    }
    return client.v1.billing.meters.create(params).id


def send(client: stripe.StripeClient, customer: str, value: int) -> None:
    params: Any = {
        "event_name": "searches",
        "payload": {"stripe_customer_id": customer, "value": str(value)},
        "timestamp": THIS_HOUR - HOUR,
    }
    client.v1.billing.meter_events.create(params)


def event_of(client: stripe.StripeClient, inbox: Any, number: int, secret: str) -> stripe.Event:
    eventually(lambda: len(inbox.received) > number, message=f"webhook {number}")
    body, signature = inbox.received[number]
    return client.construct_event(body, signature, secret)


def test_a_cycle_is_told_read_and_final(
    client: stripe.StripeClient, control: Control, inbox: Any, meter: str, customer: str
):
    secret = control.post("webhooks", url=inbox.url, types=["invoice.*"])["secret"]
    send(client, customer, 1_500_000)
    draft = control.post("cycles", customer=customer, **PERIOD)
    assert problems(draft, INVOICE) == []
    created = event_of(client, inbox, 0, secret)
    assert (created.type, created.data.object["id"]) == ("invoice.created", draft["id"])
    [line] = client.v1.invoices.line_items.list(draft["id"]).data
    assert line.pricing is not None
    assert line.pricing.price_details is not None
    price = client.v1.prices.retrieve(str(line.pricing.price_details.price))
    assert price.recurring is not None
    assert (price.recurring.meter, price.recurring.usage_type) == (meter, "metered")
    assert client.v1.billing.meters.retrieve(meter).event_name == "searches"
    assert [one.id for one in client.v1.prices.list({"recurring": {"meter": meter}}).data] == [
        price.id
    ]
    send(client, customer, 2_000_000)
    control.post("clock", advance_seconds=HOUR)
    assert event_of(client, inbox, 1, secret).type == "invoice.finalized"
    final = client.v1.invoices.retrieve(draft["id"])
    assert (final.status, final.total, final.lines.data[0].quantity) == ("open", 200, 2_000_000)
    assert final.status_transitions.finalized_at == draft["automatically_finalizes_at"]
    assert client.v1.invoices.pay(draft["id"]).status == "paid"
    assert event_of(client, inbox, 2, secret).type == "invoice.paid"


def test_invoices_are_paged_from_an_instant_on(
    client: stripe.StripeClient, control: Control, customer: str
):
    made = [control.post("cycles", customer=customer, meters=[], **PERIOD) for _ in range(5)]
    control.post("clock", advance_seconds=60)
    made += [control.post("cycles", customer=customer, meters=[], **PERIOD) for _ in range(5)]
    since = {"created": {"gte": made[5]["created"]}, "customer": customer, "limit": 2}
    found = client.v1.invoices.list(since)  # type: ignore[arg-type]  # a TypedDict there
    newest_first = [one["id"] for one in reversed(made[5:])]
    assert [one.id for one in found.auto_paging_iter()] == newest_first


@pytest.mark.usefixtures("meter")
def test_a_deleted_customer_has_no_further_cycle(
    client: stripe.StripeClient, control: Control, customer: str
):
    send(client, customer, 7)
    draft = control.post("cycles", customer=customer, **PERIOD)["id"]
    client.v1.customers.delete(customer)
    with pytest.raises(httpx.HTTPStatusError, match="400 Bad Request"):
        control.post("cycles", customer=customer, **PERIOD)
    with pytest.raises(stripe.InvalidRequestError, match="No such invoice"):
        client.v1.invoices.retrieve(draft)
    [event] = client.v1.events.list({"type": "invoice.deleted"}).data
    assert (event.data.object["id"], event.data.object["status"]) == (draft, "draft")


@pytest.mark.parametrize(
    "changed",
    [
        {"grace_seconds": -1},
        {"grace_seconds": 72 * HOUR + 1},
        {"unit_amount_decimal": "1e-4"},
        {"unit_amount_decimal": "-1"},
        {"currency": "USD"},
        {"period_end": "soon"},
        {"subscription": "sub_1"},
    ],
    ids=str,
)
def test_a_cycle_is_asked_for_in_words_the_control_api_knows(
    control: Control, customer: str, changed: dict[str, Any]
):
    with pytest.raises(httpx.HTTPStatusError, match="422"):
        control.post("cycles", **{"customer": customer, **PERIOD, **changed})


def test_a_thin_event_about_no_meter_is_fetched_in_both_ways(
    client: stripe.StripeClient, control: Control, inbox: Any, customer: str
):
    control.post("webhooks", url=inbox.url, payload="thin", secret="whsec_thin")
    send(client, customer, 5)
    eventually(lambda: inbox.received)
    body, signature = inbox.received[0]
    notification: Any = client.parse_event_notification(body, signature, "whsec_thin")
    assert notification.type == "v1.billing.meter.no_meter_found"
    assert getattr(notification, "related_object", None) is None
    fetched = notification.fetch_event()
    again: Any = client.v2.core.events.retrieve(notification.id)
    assert fetched.data.reason.error_types[0].code == "no_meter"
    assert again.to_dict() == fetched.to_dict()
    with pytest.raises(stripe.InvalidRequestError) as unknown:
        client.v2.core.events.retrieve("evt_test_none")
    assert (unknown.value.http_status, unknown.value.code) == (404, "not_found")


def test_a_checkout_is_read_as_it_stands_and_not_as_it_was_told(
    client: stripe.StripeClient, control: Control, inbox: Any, customer: str
):
    secret = control.post("webhooks", url=inbox.url, types=["checkout.*"])["secret"]
    order = {"customer": customer, "amount_total": 500, "payment_status": "unpaid"}
    session = control.post("checkouts", **order)["id"]
    completed = event_of(client, inbox, 0, secret)
    assert completed.data.object["payment_status"] == "unpaid"
    control.post(f"checkouts/{session}/payment", succeeded=True)
    later = event_of(client, inbox, 1, secret)
    assert later.type == "checkout.session.async_payment_succeeded"
    found = client.v1.checkout.sessions.retrieve(session)
    assert (found.payment_status, found.amount_total, found.customer) == ("paid", 500, customer)
    with pytest.raises(stripe.InvalidRequestError, match=r"No such checkout\.session"):
        client.v1.checkout.sessions.retrieve("cs_test_none")
    with pytest.raises(httpx.HTTPStatusError, match="400"):
        control.post(f"checkouts/{session}/payment")


def test_an_event_about_a_cycle_can_be_told_again_and_read(
    client: stripe.StripeClient, control: Control, inbox: Any, customer: str
):
    control.post("webhooks", url=inbox.url, types=["invoice.created"])
    draft = control.post("cycles", customer=customer, meters=[], **PERIOD)["id"]
    eventually(lambda: len(inbox.received) == 1)
    event = json.loads(inbox.received[0][0])["id"]
    assert control.post(f"events/{event}/resend") == {"deliveries": 1}
    eventually(lambda: len(inbox.received) == 2)
    assert json.loads(inbox.received[1][0])["id"] == event
    assert client.v1.events.retrieve(event).data.object["id"] == draft


def test_what_an_empty_sandbox_gets_it_gets_again_after_a_reset(inbox: Any):
    def prepare(box: Any) -> None:
        box.events.secret = "whsec_start"
        box.events.register(inbox.url)

    server = SandboxServer(prepare=prepare)
    with server, httpx.Client(base_url=server.url, trust_env=False) as http:
        control = Control(http)
        client = stripe.StripeClient(KEY, base_addresses={"api": server.url})
        for number in range(2):
            client.v1.customers.create({})
            assert event_of(client, inbox, number, "whsec_start").type == "customer.created"
            control.post("reset")
        other = control.post("webhooks", url=inbox.url, types=["none"])
        assert other["secret"] == "whsec_start"
        assert len(control.get("webhooks")) == 2
