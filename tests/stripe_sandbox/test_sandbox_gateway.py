"""Keys, versions, idempotency, faults, and the sandbox's agreement with Stripe's description."""

from __future__ import annotations

import base64
from datetime import timedelta

import pytest
from stripe_api import KEY, Api
from stripe_description import parameter_names, problems

from billing.core.clock import ManualClock
from billing.devtools.stripe_sandbox.faults import Fault, Faults
from billing.devtools.stripe_sandbox.params import decode_form
from billing.devtools.stripe_sandbox.routes import ROUTES, Route

CUSTOMERS = "/v1/customers"


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_parameter_of_an_endpoint_is_known_and_no_other(route: Route):
    names, required = parameter_names(route.method, route.path)
    assert set(route.shape.takes) | route.shape.knows == names
    assert required <= route.shape.required


def test_every_endpoint_answers_as_stripe_describes(api: Api):
    meter, customer = api.meter(), api.customer(metadata={"k": "v"})
    api.post(f"/v1/billing/meters/{meter}", {"display_name": "New"})
    now = int(api.box.clock.seconds())
    api.report(customer, "5", at=now, identifier="e1")
    assert api.summary(meter, customer, now, now + 3_600, value_grouping_window="hour")
    cancel = {"event_name": "searches", "type": "cancel", "cancel": {"identifier": "e1"}}
    api.post("/v1/billing/meter_event_adjustments", cancel)
    payload = {"stripe_customer_id": "cus_none", "value": "1"}
    api.post("/v2/billing/meter_events", {"event_name": "searches", "payload": payload})
    [thin] = [event for event in api.box.events.all() if event["object"] == "v2.core.event"]
    walk_money(api, customer)
    for path in (
        "/v1/billing/meters",
        f"/v1/billing/meters/{meter}",
        f"/v2/core/events/{thin['id']}",
        "/v1/events",
        f"/v1/events/{api.box.events.newest()[0]['id']}",
        CUSTOMERS,
    ):
        api.get(path)
    api.post(f"/v1/billing/meters/{meter}/deactivate")
    api.post(f"/v1/billing/meters/{meter}/reactivate")
    api.delete(f"{CUSTOMERS}/{customer}")
    api.get(f"{CUSTOMERS}/{customer}")
    assert api.succeeded == {(route.method, route.path) for route in ROUTES}


def walk_money(api: Api, customer: str) -> None:
    """Call every endpoint of customers, invoices, items and grants."""
    api.post(f"{CUSTOMERS}/{customer}", {"name": "Acme"})
    assert api.get(f"{CUSTOMERS}/search", query="metadata['k']:'v'")["data"]
    paid, void, gone, lost = (
        api.post("/v1/invoices", {"customer": customer})["id"] for _ in range(4)
    )
    api.post(f"/v1/invoices/{paid}", {"description": "March"})
    item = ""
    for invoice in (paid, void, lost, paid):
        params = {"invoice": invoice, "amount": 100, "description": "Searches"}
        item = api.post("/v1/invoiceitems", params)["id"]
    for path in (
        f"/v1/invoiceitems/{item}",
        "/v1/invoiceitems",
        "/v1/invoices",
        f"/v1/invoices/{paid}",
        f"/v1/invoices/{paid}/lines",
    ):
        api.get(path)
    api.delete(f"/v1/invoiceitems/{item}")
    api.delete(f"/v1/invoices/{gone}")
    for invoice in (paid, void, lost):
        api.post(f"/v1/invoices/{invoice}/finalize")
    api.post(f"/v1/invoices/{paid}/pay")
    api.post(f"/v1/invoices/{void}/void")
    api.post(f"/v1/invoices/{lost}/mark_uncollectible")
    price = api.get("/v1/prices")["data"][0]["id"]
    api.get(f"/v1/prices/{price}")
    grant = {
        "customer": customer,
        "amount": {"type": "monetary", "monetary": {"currency": "usd", "value": 5}},
        "applicability_config": {"scope": {"price_type": "metered"}},
    }
    made = api.post("/v1/billing/credit_grants", grant)["id"]
    api.get("/v1/billing/credit_grants")
    api.get(f"/v1/billing/credit_grants/{made}")
    session = api.box.checkouts.complete(
        customer=customer, amount_total=5, currency="usd", metadata={}, client_reference_id=None
    )
    api.get(f"/v1/checkout/sessions/{session['id']}")


def test_the_validator_finds_what_is_wrong():
    schema = {
        "type": "object",
        "required": ["id", "kind"],
        "properties": {
            "id": {"type": "string", "maxLength": 3},
            "kind": {"type": "string", "enum": ["a"]},
            "none": {"type": "integer", "nullable": True},
            "list": {"type": "array", "items": {"type": "integer"}},
        },
    }
    assert problems({"id": "abc", "kind": "a", "none": None, "list": [1]}, schema) == []
    assert problems({"id": "abcd", "kind": "b", "list": [True]}, schema) == [
        "$.id is longer than 3",
        "$.kind is 'b', not one of ['a']",
        "$.list[0] is True, not of type integer",
    ]
    assert problems({"id": None, "extra": 1}, schema) == [
        "$.kind is missing",
        "$.id is null",
        "$.extra is not in Stripe's description",
    ]


def test_forms_nest():
    form = "a=1&b%5Bc%5D=2&b%5Bd%5D%5Be%5D=&f%5B0%5D=x&f%5B1%5D=y&g%5B%5D=z"
    assert decode_form(form) == {
        "a": "1",
        "b": {"c": "2", "d": {"e": ""}},
        "f": ["x", "y"],
        "g": ["z"],
    }


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer ",
        "Bearer sk_live_4eC39HqLyjWDarjtT1zdp7dc",
        "Bearer pk_test_1",
        "Bearer sk_test_",
        "Basic !!",
        "Digest sk_test_1",
    ],
)
def test_only_a_secret_test_key_is_let_in(api: Api, authorization: str):
    refused = api.ask("GET", CUSTOMERS, {}, headers={"authorization": authorization})
    assert refused.status == 401
    assert refused.error["type"] == "invalid_request_error"
    assert "sk_live_4eC39H" not in refused.error["message"]


def test_a_key_may_come_as_the_user_of_basic_auth(api: Api):
    basic = base64.b64encode(f"{KEY}:".encode()).decode()
    answer = api.ask("GET", CUSTOMERS, {}, headers={"authorization": f"Basic {basic}"})
    assert answer.status == 200


def test_every_answer_has_a_request_id_and_the_version_asked_for(api: Api):
    first, second = api.get(CUSTOMERS), api.get(f"{CUSTOMERS}/cus_none")
    assert first.headers["Request-Id"].startswith("req_")
    assert first.headers["Request-Id"] != second.headers["Request-Id"]
    assert second.headers["Stripe-Version"] == "2026-10-28.endive"
    assert second.error["message"] == "No such customer: 'cus_none'"
    wrong = api.ask("GET", CUSTOMERS, {}, headers={"stripe-version": "latest"})
    assert wrong.status == 400


def test_an_unknown_url_is_told_in_stripes_words(api: Api):
    refused = api.ask("GET", "/v1/subscription_items/si_1/usage_records", {}, described=False)
    assert refused.status == 404
    assert refused.error["message"].startswith(
        "Unrecognized request URL (GET: /v1/subscription_items/si_1/usage_records)."
    )


def test_what_the_sandbox_does_not_act_on_is_refused_by_name(api: Api):
    refused = api.post(CUSTOMERS, {"name": "a", "tax_exempt": "none"})
    assert refused.error["code"] == "sandbox_not_implemented"
    assert refused.error["param"] == "tax_exempt"


def test_a_body_that_is_not_a_form_is_refused(api: Api):
    answer = api.ask("POST", CUSTOMERS, {"name": "a"}, headers={"content-type": "application/json"})
    assert answer.status == 400
    assert api.box.customers.newest() == []


def test_a_repeated_key_replays_the_answer_and_does_nothing(api: Api):
    first = api.post(CUSTOMERS, {"name": "a"}, key="k1")
    api.post(f"{CUSTOMERS}/{first['id']}", {"name": "changed"})
    again = api.post(CUSTOMERS, {"name": "a"}, key="k1")
    assert again.body == first.body
    assert again.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.headers
    assert len(api.box.customers.newest()) == 1


def test_a_key_is_for_one_request(api: Api):
    api.post(CUSTOMERS, {"name": "a"}, key="k1")
    other = api.post(CUSTOMERS, {"name": "b"}, key="k1")
    assert (other.status, other.error["type"]) == (400, "idempotency_error")
    assert "same parameters they were first used with" in other.error["message"]
    elsewhere = api.post("/v1/invoices", {"name": "a"}, key="k1")
    assert "same endpoint" in elsewhere.error["message"]
    assert api.post(CUSTOMERS, {"name": "c"}, key="k" * 256).status == 400
    assert len(api.box.customers.newest()) == 1


def test_a_key_is_forgotten_after_a_day(api: Api, sandbox_clock: ManualClock):
    api.post(CUSTOMERS, {"name": "a"}, key="k1")
    sandbox_clock.advance(timedelta(hours=24, seconds=1))
    assert api.post(CUSTOMERS, {"name": "b"}, key="k1").status == 200


def test_a_server_error_sticks_to_its_key(api: Api):
    failed = api.post(CUSTOMERS, {"name": "a"}, key="k1", fault=Fault(kind="server_error"))
    assert (failed.status, failed.error["type"]) == (500, "api_error")
    again = api.post(CUSTOMERS, {"name": "a"}, key="k1")
    assert (again.status, again.headers["Idempotent-Replayed"]) == (500, "true")
    assert api.box.customers.newest() == []
    assert api.post(CUSTOMERS, {"name": "a"}, key="k2").status == 200


def test_a_server_error_may_come_after_the_effect(api: Api):
    fault = Fault(kind="server_error", effect=True)
    assert api.post(CUSTOMERS, {"name": "a"}, key="k1", fault=fault).status == 500
    assert len(api.box.customers.newest()) == 1


def test_a_failed_execution_is_stored_and_a_wrong_parameter_is_not(api: Api):
    assert api.post("/v1/invoices", {"customer": "cus_none"}, key="k1").status == 400
    again = api.post("/v1/invoices", {"customer": "cus_none"}, key="k1")
    assert again.headers["Idempotent-Replayed"] == "true"
    api.post(CUSTOMERS, {"nonsense": "1"}, key="k2")
    corrected = api.post(CUSTOMERS, {"name": "a"}, key="k2")
    assert corrected.status == 200


@pytest.mark.parametrize("kind", ["rate_limit", "lock_timeout", "unauthorized", "forbidden"])
def test_a_refusal_at_the_door_is_not_stored(api: Api, kind: str):
    fault = Fault(kind=kind)  # type: ignore[arg-type]  # the words of FaultKind
    refused = api.post(CUSTOMERS, {"name": "a"}, key="k1", fault=fault)
    assert refused.status in {401, 403, 429}
    assert api.box.customers.newest() == []
    assert api.post(CUSTOMERS, {"name": "a"}, key="k1").status == 200


def test_the_two_429s_are_told_apart_as_stripe_does(api: Api):
    limited = api.post(CUSTOMERS, fault=Fault(kind="rate_limit"))
    assert limited.headers["Stripe-Rate-Limited-Reason"] == "endpoint-rate"
    locked = api.post(CUSTOMERS, fault=Fault(kind="lock_timeout"))
    assert locked.error["code"] == "lock_timeout"
    assert locked.headers["Stripe-Should-Retry"] == "true"
    assert "Stripe-Rate-Limited-Reason" not in locked.headers


def test_v2_does_not_store_failures(api: Api):
    customer = api.customer()
    event = {"event_name": "searches", "payload": {"stripe_customer_id": customer, "value": "1"}}
    path = "/v2/billing/meter_events"
    assert api.post(path, event, key="k1").error["code"] == "no_meter"
    api.meter()
    taken = api.post(path, event, key="k1")
    again = api.post(path, event, key="k1")
    assert again.body == taken.body
    assert len(api.box.usage.taken) == 1


def test_a_fault_is_for_the_next_requests_that_fit():
    faults = Faults()
    faults.order(Fault(kind="rate_limit", method="POST", path="/v1/billing/*", times=2, skip=1))
    asked = [
        ("GET", "/v1/billing/meters"),
        ("POST", "/v1/customers"),
        ("POST", "/v1/billing/meters"),
        ("POST", "/v1/billing/meter_events"),
        ("POST", "/v1/billing/meter_events"),
        ("POST", "/v1/billing/meter_events"),
    ]
    hit = [faults.take(method, path) is not None for method, path in asked]
    assert hit == [False, False, False, True, True, False]
    assert faults.ordered == []
