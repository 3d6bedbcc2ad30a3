"""Customers, invoices and their items, credit grants, checkouts."""

from __future__ import annotations

from datetime import timedelta

import pytest
from stripe_api import Answer, Api

from billing.core.clock import ManualClock
from billing.devtools.stripe_sandbox.errors import Refusal
from billing.devtools.stripe_sandbox.faults import Fault


@pytest.fixture
def acme(api: Api) -> str:
    return api.customer(name="Acme", email="bills@acme.test", metadata={"weighbridge": "acme"})


def draft(api: Api, customer: str, **more: object) -> str:
    return str(api.post("/v1/invoices", {"customer": customer, **more})["id"])


def item(api: Api, invoice: str, **more: object) -> Answer:
    return api.post("/v1/invoiceitems", {"invoice": invoice, **more})


def kinds(api: Api) -> list[str]:
    return [event["type"] for event in api.box.events.all()]


def test_metadata_is_merged_and_an_empty_value_removes_its_key(api: Api, acme: str):
    changed = api.post(f"/v1/customers/{acme}", {"metadata": {"weighbridge": "", "tier": "gold"}})
    assert changed["metadata"] == {"tier": "gold"}
    assert api.post(f"/v1/customers/{acme}", {"metadata": ""})["metadata"] == {}
    assert changed["name"] == "Acme"


def test_a_deleted_customer_leaves_a_stub_and_cannot_be_billed(api: Api, acme: str):
    assert api.delete(f"/v1/customers/{acme}")["deleted"] is True
    assert api.get(f"/v1/customers/{acme}")["deleted"] is True
    refused = api.post("/v1/invoices", {"customer": acme})
    assert (refused.status, refused.error["code"]) == (400, "resource_missing")
    assert api.post(f"/v1/customers/{acme}", {"name": "x"}).status == 404
    assert "customer.deleted" in kinds(api)


def test_customers_are_listed_newest_first_with_cursors_both_ways(api: Api):
    ids = [api.customer(name=str(number)) for number in range(5)][::-1]

    def listed(**params: object) -> list[str]:
        return [one["id"] for one in api.get("/v1/customers", **params)["data"]]

    assert listed() == ids
    assert listed(limit=2) == ids[:2]
    assert listed(limit=2, starting_after=ids[1]) == ids[2:4]
    assert listed(limit=2, ending_before=ids[4]) == ids[2:4]
    assert api.get("/v1/customers", limit=101).status == 400
    assert api.get("/v1/customers", starting_after="cus_none").status == 400


def test_customers_are_searched_by_metadata(api: Api, acme: str, sandbox_clock: ManualClock):
    api.customer(metadata={"weighbridge": "other"})
    query = "metadata['weighbridge']:'acme' AND name:\"Acme\""
    found = api.get("/v1/customers/search", query=query)
    assert [one["id"] for one in found["data"]] == [acme]
    assert api.get("/v1/customers/search", query="weighbridge=acme").status == 400
    api.box.customers.search_seconds = 60
    assert api.get("/v1/customers/search", query=query)["data"] == []
    sandbox_clock.advance(timedelta(seconds=60))
    assert len(api.get("/v1/customers/search", query=query)["data"]) == 1


def test_a_draft_adds_up_its_items_and_reads_back_its_lines(api: Api, acme: str):
    invoice = draft(api, acme, metadata={"run_id": "7"}, auto_advance=False)
    period = {"start": 1_585_699_200, "end": 1_588_291_200}
    item(api, invoice, amount=1_250, currency="usd", description="Searches", period=period)
    item(api, invoice, unit_amount_decimal="0.0125", quantity_decimal="1001.5")
    item(api, invoice, amount=-50, metadata={"line": "3"})
    lines = api.get(f"/v1/invoices/{invoice}/lines")["data"]
    assert [line["amount"] for line in lines] == [1_250, 13, -50]
    assert lines[0]["period"] == period
    assert lines[0]["description"] == "Searches"
    assert lines[1]["quantity_decimal"] == "1001.5"
    assert lines[2]["metadata"] == {"line": "3"}
    found = api.get(f"/v1/invoices/{invoice}")
    assert (found["status"], found["total"], found["number"]) == ("draft", 1_213, None)
    assert found["metadata"] == {"run_id": "7"}


def test_an_item_may_name_a_price(api: Api, acme: str):
    price = api.box.prices.one_time("0.5", "usd", "prod_a")["id"]
    invoice = draft(api, acme)
    made = item(api, invoice, pricing={"price": price}, quantity=101)
    assert made["amount"] == 51
    assert made["pricing"]["price_details"] == {"price": price, "product": "prod_a"}
    assert item(api, invoice, pricing={"price": "price_none"}).error["code"] == "resource_missing"


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({}, "amount"),
        ({"amount": 1, "unit_amount_decimal": "1"}, "amount"),
        ({"amount": 1, "quantity": 2}, "quantity"),
        ({"amount": "1.5"}, "amount"),
        ({"unit_amount_decimal": "1E-7"}, "unit_amount_decimal"),
        ({"unit_amount_decimal": "0.0000000000001"}, "unit_amount_decimal"),
        ({"amount": 1, "currency": "eur"}, "currency"),
        ({"amount": 1, "period": {"start": 5}}, "period[end]"),
        ({"amount": 1, "price": "price_1"}, "price"),
    ],
)
def test_an_item_says_its_amount_in_one_way(
    api: Api, acme: str, params: dict[str, object], param: str
):
    invoice = draft(api, acme, currency="usd")
    refused = item(api, invoice, **params)
    assert refused.status == 400
    assert refused.error["param"] == param
    assert api.get(f"/v1/invoices/{invoice}/lines")["data"] == []


def test_a_final_invoice_is_not_editable(api: Api, acme: str):
    invoice = draft(api, acme)
    line = item(api, invoice, amount=100)["id"]
    final = api.post(f"/v1/invoices/{invoice}/finalize", {"auto_advance": False})
    assert (final["status"], final["amount_due"]) == ("open", 100)
    assert final["status_transitions"]["finalized_at"] is not None
    assert final["number"]
    assert item(api, invoice, amount=1).error["code"] == "invoice_not_editable"
    assert api.delete(f"/v1/invoiceitems/{line}").error["code"] == "invoice_not_editable"
    assert api.delete(f"/v1/invoices/{invoice}").status == 400
    again = api.post(f"/v1/invoices/{invoice}/finalize")
    assert "already finalized" in again.error["message"]


def test_a_deleted_item_is_gone_from_its_draft(api: Api, acme: str):
    invoice = draft(api, acme)
    first = item(api, invoice, amount=100)["id"]
    item(api, invoice, amount=30)
    assert api.delete(f"/v1/invoiceitems/{first}")["deleted"] is True
    assert api.get(f"/v1/invoiceitems/{first}").status == 404
    assert api.get(f"/v1/invoices/{invoice}")["total"] == 30
    assert len(api.get("/v1/invoiceitems", invoice=invoice)["data"]) == 1


def test_an_invoice_holds_250_items(api: Api, acme: str):
    invoice = draft(api, acme)
    for _ in range(250):
        api.box.items.create({"invoice": invoice, "amount": 1})
    assert item(api, invoice, amount=1).status == 400
    assert api.get(f"/v1/invoices/{invoice}")["total"] == 250


def test_an_open_invoice_is_paid_once_or_voided(api: Api, acme: str):
    paid, void = draft(api, acme), draft(api, acme)
    for invoice in (paid, void):
        item(api, invoice, amount=100)
        assert api.post(f"/v1/invoices/{invoice}/pay").status == 400
        api.post(f"/v1/invoices/{invoice}/finalize")
    assert api.post(f"/v1/invoices/{paid}/pay")["amount_paid"] == 100
    assert api.post(f"/v1/invoices/{paid}/pay").status == 400
    assert api.post(f"/v1/invoices/{paid}/void").status == 400
    assert api.post(f"/v1/invoices/{void}/void")["status"] == "void"
    assert kinds(api)[-2:] == ["invoice.paid", "invoice.voided"]


def test_a_declined_payment_leaves_the_invoice_open(api: Api, acme: str):
    invoice = draft(api, acme)
    item(api, invoice, amount=100)
    api.post(f"/v1/invoices/{invoice}/finalize")
    refused = api.post(f"/v1/invoices/{invoice}/pay", fault=Fault(kind="decline"))
    assert (refused.status, refused.error["code"]) == (402, "card_declined")
    assert kinds(api)[-1] == "invoice.payment_failed"
    assert api.get(f"/v1/invoices/{invoice}")["status"] == "open"
    assert api.post(f"/v1/invoices/{invoice}/pay")["status"] == "paid"


def test_an_invoice_that_asks_for_nothing_is_paid_when_final(api: Api, acme: str):
    invoice = draft(api, acme)
    item(api, invoice, amount=-100)
    final = api.post(f"/v1/invoices/{invoice}/finalize")
    assert (final["status"], final["total"], final["amount_due"]) == ("paid", -100, 0)


def test_auto_advance_finalises_after_an_hour_even_without_its_items(
    api: Api, acme: str, sandbox_clock: ManualClock
):
    invoice = draft(api, acme, auto_advance=True)
    left = draft(api, acme, auto_advance=False)
    sandbox_clock.advance(timedelta(minutes=59))
    assert api.get(f"/v1/invoices/{invoice}")["status"] == "draft"
    sandbox_clock.advance(timedelta(minutes=1))
    assert api.get(f"/v1/invoices/{invoice}")["status"] == "paid"
    assert api.get(f"/v1/invoices/{left}")["status"] == "draft"
    api.post(f"/v1/invoices/{left}", {"auto_advance": True, "description": "late"})
    assert api.get(f"/v1/invoices/{left}")["status"] == "paid"


def test_a_final_invoice_keeps_its_terms_and_takes_metadata(api: Api, acme: str):
    invoice = draft(api, acme, metadata={"run_id": "1", "old": "x"})
    api.post(f"/v1/invoices/{invoice}/finalize")
    changed = api.post(f"/v1/invoices/{invoice}", {"metadata": {"sealed": "yes", "old": ""}})
    assert changed["metadata"] == {"run_id": "1", "sealed": "yes"}
    refused = api.post(f"/v1/invoices/{invoice}", {"auto_advance": True})
    assert refused.error["code"] == "invoice_not_editable"
    assert api.post(f"/v1/invoices/{invoice}", {"due_date": 1}).error["param"] == "due_date"


def test_a_deleted_draft_is_gone(api: Api, acme: str, sandbox_clock: ManualClock):
    invoice = draft(api, acme, auto_advance=True)
    assert api.delete(f"/v1/invoices/{invoice}")["deleted"] is True
    sandbox_clock.advance(timedelta(hours=2))
    assert api.get(f"/v1/invoices/{invoice}").status == 404
    assert kinds(api)[-1] == "invoice.deleted"


def test_pending_items_go_on_an_invoice_only_if_it_asks_for_them(api: Api, acme: str):
    api.post("/v1/invoiceitems", {"customer": acme, "amount": 70})
    assert api.get(f"/v1/invoices/{draft(api, acme)}")["total"] == 0
    including = draft(api, acme, pending_invoice_items_behavior="include")
    assert api.get(f"/v1/invoices/{including}")["total"] == 70
    assert api.post("/v1/invoiceitems", {"amount": 70}).error["param"] == "customer"


def test_invoices_are_found_by_customer_and_status(api: Api, acme: str):
    first, second = draft(api, acme, metadata={"run_id": "1"}), draft(api, acme)
    draft(api, api.customer())
    api.post(f"/v1/invoices/{second}/finalize")
    found = api.get("/v1/invoices", customer=acme, status="draft")["data"]
    assert [one["id"] for one in found] == [first]
    assert found[0]["metadata"] == {"run_id": "1"}


def test_a_sent_invoice_needs_a_due_date(api: Api, acme: str):
    send = {"customer": acme, "collection_method": "send_invoice"}
    assert api.post("/v1/invoices", send).error["param"] == "days_until_due"
    made = api.post("/v1/invoices", {**send, "days_until_due": 30})
    assert made["due_date"] == made["created"] + 30 * 86_400
    refused = api.post("/v1/invoices", {"customer": acme, "days_until_due": 30})
    assert refused.error["param"] == "days_until_due"


def test_credit_grants_are_made_and_listed_by_customer(api: Api, acme: str):
    grant = {
        "customer": acme,
        "amount": {"type": "monetary", "monetary": {"currency": "usd", "value": 5_000}},
        "applicability_config": {"scope": {"price_type": "metered"}},
        "category": "promotional",
        "metadata": {"grant": "g1"},
    }
    made = api.post("/v1/billing/credit_grants", grant)
    assert made["amount"]["monetary"]["value"] == 5_000
    assert made["priority"] == 50
    assert api.get(f"/v1/billing/credit_grants/{made['id']}")["metadata"] == {"grant": "g1"}
    assert len(api.get("/v1/billing/credit_grants", customer=acme)["data"]) == 1
    other = api.customer()
    assert api.get("/v1/billing/credit_grants", customer=other)["data"] == []
    late = {**grant, "effective_at": 200, "expires_at": 100}
    assert api.post("/v1/billing/credit_grants", late).error["param"] == "expires_at"
    high = {**grant, "priority": 101}
    assert api.post("/v1/billing/credit_grants", high).error["param"] == "priority"


def test_a_completed_checkout_is_an_event_and_can_be_fetched(api: Api, acme: str):
    session = api.box.checkouts.complete(
        customer=acme,
        amount_total=2_000,
        currency="usd",
        metadata={"credits": "100"},
        client_reference_id="acme",
    )
    event = api.box.events.newest()[0]
    assert event["type"] == "checkout.session.completed"
    assert event["data"]["object"] == session
    assert api.get(f"/v1/checkout/sessions/{session['id']}")["payment_status"] == "paid"


@pytest.mark.parametrize(
    ("succeeded", "status", "kind"),
    [
        (True, "paid", "checkout.session.async_payment_succeeded"),
        (False, "unpaid", "checkout.session.async_payment_failed"),
    ],
)
def test_the_payment_of_a_checkout_may_come_later_or_fail(
    api: Api, succeeded: bool, status: str, kind: str
):
    checkouts = api.box.checkouts
    session = checkouts.complete(
        customer=None,
        amount_total=2_000,
        currency="usd",
        metadata={"credits": "100"},
        client_reference_id="acme",
        payment_status="unpaid",
    )
    path = f"/v1/checkout/sessions/{session['id']}"
    assert (api.get(path)["payment_status"], api.get(path)["customer"]) == ("unpaid", None)
    checkouts.end_payment(session["id"], succeeded=succeeded)
    assert (api.get(path)["payment_status"], kinds(api)[-1]) == (status, kind)
    if succeeded:
        with pytest.raises(Refusal) as refused:
            checkouts.end_payment(session["id"], succeeded=True)
        assert "paid already" in refused.value.message


def test_an_event_keeps_its_object_as_it_was(api: Api, acme: str):
    invoice = draft(api, acme)
    created = api.box.events.newest()[0]["id"]
    item(api, invoice, amount=100)
    api.post(f"/v1/invoices/{invoice}/finalize")
    old = api.get(f"/v1/events/{created}")
    assert old["type"] == "invoice.created"
    assert old["data"]["object"]["total"] == 0
    final = api.get("/v1/events", type="invoice.finalized")["data"][0]
    assert final["data"]["object"]["total"] == 100
