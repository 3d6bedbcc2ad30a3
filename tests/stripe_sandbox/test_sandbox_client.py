"""The running server, as stripe-python and a receiver of webhooks see it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import stripe
from stripe_api import Control
from support import eventually

from billing.core.clock import ManualClock
from billing.devtools.embedded_servers.launch import free_ports
from billing.devtools.stripe_sandbox import SandboxServer

HOUR = 3_600
EVENTS = "/v1/billing/meter_events"
Connect = Callable[..., stripe.StripeClient]


# Told once: a test that runs over the full hour reads the hour it has sent.
THIS_HOUR = int(time.time()) // HOUR * HOUR


def make_meter(client: stripe.StripeClient, **more: Any) -> str:
    params: Any = {
        "display_name": "Searches",
        "event_name": "searches",
        "default_aggregation": {"formula": "sum"},
        **more,
    }
    return client.v1.billing.meters.create(params).id


def send(
    client: stripe.StripeClient, customer: str, value: int, identifier: str, key: str | None = None
) -> Any:
    params: Any = {
        "event_name": "searches",
        "payload": {"stripe_customer_id": customer, "value": str(value)},
        "timestamp": THIS_HOUR,
        "identifier": identifier,
    }
    options: Any = {"idempotency_key": key} if key else {}
    return client.v1.billing.meter_events.create(params, options)


def read(client: stripe.StripeClient, meter: str, customer: str) -> list[float]:
    found = client.v1.billing.meters.event_summaries.list(
        meter,
        {
            "customer": customer,
            "start_time": THIS_HOUR,
            "end_time": THIS_HOUR + HOUR,
            "value_grouping_window": "hour",
        },
    )
    return [one.aggregated_value for one in found.data]


@pytest.fixture
def hourly(client: stripe.StripeClient) -> str:
    return make_meter(client, event_time_window="hour")


@pytest.fixture
def raw(client: stripe.StripeClient) -> str:
    return make_meter(client)


@pytest.fixture
def customer(client: stripe.StripeClient) -> str:
    return client.v1.customers.create({"name": "Acme"}).id


def test_an_hour_is_overwritten_and_read_back(
    client: stripe.StripeClient, hourly: str, customer: str
):
    send(client, customer, 10, "r1")
    send(client, customer, 7, "r2")
    assert read(client, hourly, customer) == [7]


def test_meters_are_paged_through(client: stripe.StripeClient):
    for number in range(13):
        make_meter(client, event_name=f"m{number}")
    found = client.v1.billing.meters.list({"status": "active", "limit": 5})
    assert [meter.event_name for meter in found.auto_paging_iter()] == [
        f"m{number}" for number in reversed(range(13))
    ]


@pytest.mark.usefixtures("raw")
def test_a_duplicate_is_an_invalid_request_without_a_code(connect: Connect, customer: str):
    client = connect(retries=2)
    send(client, customer, 10, "once")
    with pytest.raises(
        stripe.InvalidRequestError, match="already exists with identifier once"
    ) as e:
        send(client, customer, 10, "once")
    assert e.value.code is None
    assert e.value.http_status == 400


def test_v2_takes_events_through_the_client(client: stripe.StripeClient, raw: str, customer: str):
    payload = {"stripe_customer_id": customer, "value": "4"}
    # Dated: without that it is of the hour in which it arrives, which may be the one after.
    dated = datetime.fromtimestamp(THIS_HOUR, UTC).isoformat()
    client.v2.billing.meter_events.create(
        {"event_name": "searches", "payload": payload, "timestamp": dated}
    )
    assert read(client, raw, customer) == [4]
    with pytest.raises(stripe.InvalidRequestError) as refused:
        client.v2.billing.meter_events.create({"event_name": "none", "payload": payload})
    assert refused.value.code == "no_meter"


def test_a_wrong_key_is_an_authentication_error(connect: Connect):
    with pytest.raises(stripe.AuthenticationError, match="Invalid API Key provided"):
        connect("sk_live_4eC39HqLyjWDarjtT1zdp7dc").v1.customers.list()


@pytest.mark.parametrize("seconds", [0, 2])
def test_an_answer_can_be_lost_after_the_effect(
    connect: Connect, control: Control, raw: str, customer: str, seconds: int
):
    client = connect(timeout=1)
    control.fault("timeout", path=EVENTS, seconds=seconds)
    with pytest.raises(stripe.APIConnectionError):
        send(client, customer, 10, "lost")
    with pytest.raises(stripe.InvalidRequestError, match="already exists"):
        send(client, customer, 10, "lost")
    assert read(client, raw, customer) == [10]


def test_a_connection_can_be_lost_before_the_effect(
    client: stripe.StripeClient, control: Control, raw: str, customer: str
):
    control.fault("timeout", path=EVENTS, effect=False)
    with pytest.raises(stripe.APIConnectionError):
        send(client, customer, 10, "first")
    assert read(client, raw, customer) == []
    send(client, customer, 10, "first")
    assert read(client, raw, customer) == [10]


def test_a_500_sticks_to_its_key_and_a_fresh_key_gets_through(
    client: stripe.StripeClient, control: Control, hourly: str, customer: str
):
    control.fault("server_error", path=EVENTS)
    for _ in range(2):
        with pytest.raises(stripe.APIError) as failed:
            send(client, customer, 10, "r1", key="attempt-1")
        assert failed.value.http_status == 500
    send(client, customer, 10, "r1", key="attempt-2")
    assert read(client, hourly, customer) == [10]


def test_the_client_retries_a_lock_timeout_and_no_rate_limit(
    connect: Connect, control: Control, hourly: str, customer: str
):
    client = connect(retries=1)
    control.fault("lock_timeout", path=EVENTS)
    send(client, customer, 10, "r1")
    control.fault("rate_limit", path=EVENTS)
    with pytest.raises(stripe.RateLimitError) as limited:
        send(client, customer, 20, "r2")
    assert limited.value.headers["stripe-rate-limited-reason"] == "endpoint-rate"
    assert read(client, hourly, customer) == [10]


def test_a_key_in_use_is_a_conflict_and_overlaps_are_counted(
    connect: Connect, control: Control, hourly: str, customer: str
):
    control.fault("latency", path=EVENTS, seconds=0.8)
    slow = threading.Thread(target=send, args=(connect(), customer, 10, "r1", "same"))
    slow.start()
    eventually(lambda: control.get("faults") == [], message="the slow request is under way")
    with pytest.raises(stripe.APIError) as conflict:
        send(connect(), customer, 10, "r1", "same")
    send(connect(), customer, 12, "r2", "other")
    slow.join(timeout=60)
    assert conflict.value.http_status == 409
    assert conflict.value.error is not None
    assert conflict.value.error.code == "idempotency_key_in_use"
    assert control.get("state")["overlapping_meter_events"] == {f"searches|{customer}": 1}
    # The slow one arrived last at the meter, so it is the one that counts.
    assert read(connect(), hourly, customer) == [10]


def test_an_invoice_goes_from_draft_to_paid(client: stripe.StripeClient, customer: str):
    invoices = client.v1.invoices
    params: Any = {
        "customer": customer,
        "auto_advance": False,
        "pending_invoice_items_behavior": "exclude",
        "metadata": {"run_id": "1"},
    }
    options: Any = {"idempotency_key": "inv:1"}
    draft = invoices.create(params, options)
    assert invoices.create(params, options).id == draft.id
    for amount in (1_000, 250):
        client.v1.invoice_items.create(
            {"customer": customer, "invoice": draft.id, "amount": amount, "currency": "usd"}
        )
    lines = invoices.line_items.list(draft.id)
    assert [line.amount for line in lines.data] == [1_000, 250]
    final = invoices.finalize_invoice(draft.id)
    assert (final.status, final.total) == ("open", 1_250)
    with pytest.raises(stripe.InvalidRequestError) as refused:
        client.v1.invoice_items.create(
            {"customer": customer, "invoice": draft.id, "amount": 1, "currency": "usd"}
        )
    assert refused.value.code == "invoice_not_editable"
    with pytest.raises(stripe.IdempotencyError):
        invoices.create({"customer": customer}, options)
    assert invoices.pay(draft.id).status == "paid"


def test_a_snapshot_event_verifies_and_parses(
    client: stripe.StripeClient, control: Control, inbox: Any
):
    endpoint = control.post("webhooks", url=inbox.url, types=["customer.*"])
    inbox.statuses = [500]
    made = client.v1.customers.create({"name": "Acme"})
    eventually(lambda: len(inbox.received) == 2, message="delivered again after a 500")
    assert inbox.received[0][0] == inbox.received[1][0]
    body, signature = inbox.received[1]
    event = client.construct_event(body, signature, endpoint["secret"])
    assert event.type == "customer.created"
    assert event.data.object["id"] == made.id
    with pytest.raises(stripe.SignatureVerificationError):
        client.construct_event(body.replace(b"Acme", b"Evil"), signature, endpoint["secret"])
    with pytest.raises(stripe.SignatureVerificationError):
        client.construct_event(body, signature, "whsec_other")
    eventually(lambda: control.get("deliveries")[0]["statuses"] == [500, 200])


def test_a_thin_event_verifies_and_its_data_is_fetched(
    client: stripe.StripeClient, control: Control, inbox: Any, hourly: str
):
    control.post("webhooks", url=inbox.url, payload="thin", secret="whsec_thin")
    send(client, "cus_nobody", 5, "r1")
    eventually(lambda: inbox.received)
    body, signature = inbox.received[0]
    assert "data" not in json.loads(body)
    notification: Any = client.parse_event_notification(body, signature, "whsec_thin")
    assert notification.type == "v1.billing.meter.error_report_triggered"
    assert notification.related_object.id == hourly
    reason = notification.fetch_event().data.reason
    assert reason.error_types[0].code == "meter_event_customer_not_found"
    assert reason.error_types[0].sample_errors[0].request.identifier == "r1"
    assert notification.fetch_related_object().event_name == "searches"
    with pytest.raises(ValueError, match="thin"):
        client.construct_event(body, signature, "whsec_thin")


def test_an_event_can_be_delivered_twice(
    client: stripe.StripeClient, control: Control, inbox: Any, customer: str
):
    control.post("webhooks", url=inbox.url, types=["checkout.session.completed"])
    control.post("checkouts", customer=customer, amount_total=500, metadata={"credits": "5"})
    eventually(lambda: len(inbox.received) == 1)
    event = json.loads(inbox.received[0][0])
    assert event["data"]["object"]["metadata"] == {"credits": "5"}
    assert control.post(f"events/{event['id']}/resend") == {"deliveries": 1}
    eventually(lambda: len(inbox.received) == 2)
    assert json.loads(inbox.received[1][0])["id"] == event["id"]
    session = client.v1.checkout.sessions.retrieve(event["data"]["object"]["id"])
    assert session.amount_total == 500


def test_the_clock_and_the_delays_are_moved_by_the_control_api(
    client: stripe.StripeClient, control: Control, hourly: str, customer: str
):
    control.post("settings", summary_seconds=600)
    send(client, customer, 9, "r1")
    assert read(client, hourly, customer) == []
    moved = control.post("clock", advance_seconds=600)
    assert moved["offset_seconds"] == 600
    assert read(client, hourly, customer) == [9]
    control.post("clock", advance_seconds=36 * 86_400)
    with pytest.raises(stripe.InvalidRequestError, match="more than 35 days in past"):
        send(client, customer, 9, "r2")
    assert control.post("clock", offset_seconds=0)["offset_seconds"] == 0
    send(client, customer, 9, "r2")


def test_the_state_counts_and_a_reset_forgets(
    client: stripe.StripeClient, control: Control, hourly: str, customer: str
):
    send(client, customer, 1, "r1")
    send(client, "cus_nobody", 1, "r2")
    state = control.get("state")
    assert state["meter_events"] == {"counted": 1, "meter_event_customer_not_found": 1}
    assert (state["customers"], state["meters"], state["requests"]) == (1, 1, 4)
    assert [one["identifier"] for one in control.get("meter_events")] == ["r1", "r2"]
    assert control.get("requests")[-1]["path"] == EVENTS
    assert control.post("reset")["requests"] == 0
    assert control.get("clock")["offset_seconds"] == 0
    with pytest.raises(stripe.InvalidRequestError, match="No such billing meter"):
        client.v1.billing.meters.retrieve(hourly)


@pytest.mark.process
def test_it_runs_on_its_own_until_interrupted():
    (port,) = free_ports(1)
    code = f"from billing.devtools.stripe_sandbox import main; main(port={port})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    try:
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: httpx.get(f"{url}/_sandbox/state", trust_env=False).json(), timeout=30)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=15)
    finally:
        process.kill()
    assert url in said.decode()


def test_a_server_lives_in_the_time_of_its_clock_and_ends_with_its_block():
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    with SandboxServer(clock) as server:
        client = stripe.StripeClient(
            "sk_test_1",
            base_addresses={"api": server.url},
            http_client=stripe.RequestsClient(timeout=5),
        )
        assert client.v1.customers.create({}).created == 1_767_225_600
        clock.advance(timedelta(seconds=5))
        assert client.v1.customers.create({}).created == 1_767_225_605
        assert len(server.sandbox.customers.newest()) == 2
    with pytest.raises(stripe.APIConnectionError):
        client.v1.customers.list()
