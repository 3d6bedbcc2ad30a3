"""``billing stripe setup`` against a local Stripe."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa
from at_stripe import AtStripe
from commandline import Billing
from support import add_customer, add_sku

from billing.container import Container
from billing.postgres.schema import customers

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

METER = "weighbridge_main_page-capture"


@pytest.fixture
def there(billing: Billing, at_stripe: AtStripe, acme: str) -> AtStripe:
    """A local Stripe that the command uses; ``acme`` and ``page-capture`` are here, not there."""
    assert acme == "acme"
    at_stripe.used_by(billing)
    return at_stripe


def links(container: Container) -> dict[str, str | None]:
    return {one.id: one.stripe_customer_id for one in container.customers.list()}


def deleted_at_stripe(container: Container, customer: str, when: datetime) -> None:
    change = sa.update(customers).where(customers.c.id == customer)
    with container.engine.begin() as connection:
        connection.execute(change.values(stripe_customer_id=None, stripe_deleted_at=when))


def only(lines: list[dict[str, Any]]) -> dict[str, Any]:
    (line,) = lines
    return line


def test_a_set_up_makes_meters_and_customers_and_says_what_comes_next(
    billing: Billing, container: Container, there: AtStripe
):
    said = billing.table("stripe", "setup")
    assert METER in said
    assert "created" in said
    assert "0.000001" in said
    assert "https://YOUR-HOST/webhooks/stripe" in said
    assert "1 credit = 0.01 USD" in said
    assert there.count("customers") == there.count("meters") == 1
    ref = links(container)["acme"]
    assert ref is not None
    assert there.person.customers.retrieve(ref).name == "acme"
    meter = only([one.to_dict() for one in there.person.billing.meters.list().data])
    assert (meter["event_name"], meter["event_time_window"]) == (METER, "hour")


def test_a_second_set_up_makes_nothing(billing: Billing, container: Container, there: AtStripe):
    first = billing.json("stripe", "setup")
    before, sent = links(container), there.changes()
    assert only(first["meters"])["state"] == only(first["customers"])["state"] == "created"
    again = billing.json("stripe", "setup")
    assert only(again["meters"])["state"] == "there"
    assert only(again["meters"])["meter_id"] == only(first["meters"])["meter_id"]
    assert only(again["customers"]) == {
        "customer": "acme",
        "state": "linked",
        "stripe_customer_id": before["acme"],
        "detail": "",
    }
    assert (links(container), there.changes()) == (before, sent)


def test_a_dry_run_changes_nothing_anywhere(
    billing: Billing, container: Container, there: AtStripe
):
    add_customer(container.engine, "globex")
    found = there.customer("globex")
    sent = there.changes()
    said = billing.table("stripe", "setup", "--dry-run")
    # The meter, the customer, and their count.
    assert said.count("would be created") == 3
    assert "would be linked" in said
    assert "nothing was changed" in said
    document = billing.json("stripe", "setup", "--dry-run")
    assert only(document["meters"])["state"] == "missing"
    assert {one["customer"]: one["stripe_customer_id"] for one in document["customers"]} == {
        "acme": None,
        "globex": found,
    }
    assert there.changes() == sent
    assert links(container) == {"acme": None, "globex": None}
    assert there.count("meters") == 0


def test_a_run_that_died_before_it_wrote_the_link_down_is_made_good_by_the_next(
    billing: Billing, container: Container, there: AtStripe
):
    made = there.provider.link_customer("acme", "acme")
    for seconds in (0, 60):
        # Stripe's search may not know it yet.
        there.control.post("settings", search_seconds=seconds)
        container.customers.link_stripe("acme", None)
        billing.json("stripe", "setup")
        assert links(container) == {"acme": made}
    assert there.count("customers") == 1


def test_nobody_is_made_where_that_was_not_wanted(
    billing: Billing, container: Container, there: AtStripe
):
    add_customer(container.engine, "globex")
    found = there.customer("globex")
    document = billing.json("stripe", "setup", "--no-create-customers")
    states = {one["customer"]: one["state"] for one in document["customers"]}
    assert states == {"acme": "missing", "globex": "found"}
    assert links(container) == {"acme": None, "globex": found}
    assert "parked until they are linked" in billing.table(
        "stripe", "setup", "--no-create-customers"
    )


def test_only_the_customers_that_were_named_are_linked(
    billing: Billing, container: Container, there: AtStripe
):
    assert there.url
    for customer in ("globex", "initech"):
        add_customer(container.engine, customer)
    billing.json("stripe", "setup", "--customer", "globex", "--customer", "acme")
    assert {one for one, ref in links(container).items() if ref} == {"acme", "globex"}
    assert "no customer 'nobody'" in billing.error("stripe", "setup", "--customer", "nobody")


def test_who_was_deleted_at_stripe_is_told_and_never_linked_by_itself(
    billing: Billing, container: Container, there: AtStripe, moment: datetime
):
    deleted_at_stripe(container, "acme", moment)
    there.customer("acme")
    said = " ".join(billing.table("stripe", "setup").split())
    assert "deleted" in said
    assert "billing customers link acme cus_..." in said
    assert links(container) == {"acme": None}


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"event_time_window": "day"}, "event_time_window is day, needed hour"),
        ({"event_time_window": None}, "event_time_window is none, needed hour"),
        (
            {"default_aggregation": {"formula": "last"}},
            "default_aggregation.formula is last, needed sum",
        ),
        (
            {"value_settings": {"event_payload_key": "credits"}},
            "value_settings.event_payload_key is credits, needed value",
        ),
    ],
    ids=str,
)
def test_a_meter_that_counts_otherwise_stops_the_set_up_and_says_which_field(
    billing: Billing, container: Container, there: AtStripe, params: dict[str, Any], field: str
):
    add_sku(container.engine, "premium-proxy-search")
    there.meter(METER, **params)
    sent = there.changes()
    said = " ".join(billing.table("stripe", "setup", code=1).split())
    assert field in said
    assert "WEIGHBRIDGE_ENVIRONMENT" in said
    document = billing.json("stripe", "setup", code=1)
    assert document["ready"] is False
    assert [one["state"] for one in document["meters"]] == ["differs", "missing"]
    assert document["customers"] == []
    assert there.changes() == sent
    assert links(container) == {"acme": None}


def test_a_meter_that_somebody_deactivated_stops_the_set_up(billing: Billing, there: AtStripe):
    there.person.billing.meters.deactivate(there.meter(METER))
    said = billing.table("stripe", "setup", code=1)
    assert "status is inactive, needed active" in said
    assert "reactivate it at Stripe" in said


def test_a_link_that_is_another_customers_here_is_told_and_the_others_are_linked(
    billing: Billing, container: Container, there: AtStripe
):
    # Somebody linked acme's Stripe customer to globex by hand.
    ref = there.customer("acme")
    for customer in ("globex", "initech"):
        add_customer(container.engine, customer)
    container.customers.link_stripe("globex", ref)
    document = billing.json("stripe", "setup", code=1)
    states = {one["customer"]: one["state"] for one in document["customers"]}
    assert states == {"acme": "failed", "globex": "linked", "initech": "created"}
    assert "belongs to another customer" in document["customers"][0]["detail"]
    assert "another customer" in " ".join(billing.table("stripe", "setup", code=1).split())


def test_one_customer_without_an_answer_does_not_stop_the_others(
    billing: Billing, container: Container, there: AtStripe
):
    add_customer(container.engine, "globex")
    there.control.fault("server_error", path="/v1/customers/search")
    document = billing.json("stripe", "setup", code=1)
    assert [one["state"] for one in document["customers"]] == ["failed", "created"]
    assert "server_error" in document["customers"][0]["detail"]
    assert billing.json("stripe", "setup")["customers"][0]["state"] == "created"
    assert all(links(container).values())


def test_a_stripe_that_stays_away_ends_the_set_up_with_what_to_do(
    billing: Billing, container: Container, there: AtStripe
):
    for number in range(5):
        add_customer(container.engine, f"customer-{number}")
    there.control.fault("server_error", path="/v1/customers/search", times=3)
    said = billing.error("stripe", "setup")
    assert "server_error" in said
    assert "no usage is lost" in said
    assert not any(links(container).values())


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"STRIPE_API_KEY": None}, 1, "STRIPE_API_KEY: there is no key"),
        ({"STRIPE_API_KEY": "pk_test_abc"}, 1, "this is a publishable key"),
        ({"STRIPE_API_KEY": "sk_live_abc"}, 1, "set STRIPE_LIVE=yes"),
        ({"STRIPE_API_KEY": "sk_live_abc", "STRIPE_LIVE": "yes"}, 1, "STRIPE_API_BASE: a live key"),
        ({"STRIPE_API_BASE": "http://127.0.0.1:1"}, 1, "could not be reached; no usage is lost"),
    ],
    ids=str,
)
def test_a_key_or_address_that_cannot_be_used_is_told_in_words(
    billing: Billing, there: AtStripe, changes: dict[str, str | None], code: int, said: str
):
    billing.environment |= changes
    assert said in billing.error("stripe", "setup", "--dry-run", code=code)
    assert there.changes() == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("unauthorized", "Stripe does not accept the key"),
        ("forbidden", "the key is right, but may not do this"),
    ],
)
def test_a_key_that_stripe_refuses_is_told_in_words(
    billing: Billing, there: AtStripe, fault: str, said: str
):
    there.control.fault(fault, path="*")
    error = billing.error("stripe", "setup")
    assert said in error
    assert "https://dashboard.stripe.com/test/apikeys" in error


def test_with_another_provider_in_use_stripe_is_set_up_all_the_same(
    billing: Billing, container: Container, there: AtStripe
):
    billing.environment["WEIGHBRIDGE_PROVIDER"] = "ledger"
    said = " ".join(billing.table("stripe", "setup").split())
    assert "Usage goes to the provider 'ledger' until WEIGHBRIDGE_PROVIDER is stripe" in said
    assert all(links(container).values())
    assert there.count("meters") == 1


def test_a_price_too_fine_for_stripe_is_told_with_the_scale_that_is_not(
    billing: Billing, there: AtStripe
):
    assert there.url
    billing.environment["WEIGHBRIDGE_CREDIT_VALUE"] = "0.000000000001"
    said = " ".join(billing.table("stripe", "setup").split())
    assert "too fine" in said
    assert "--meter-decimals 2" in said
    assert only(billing.json("stripe", "setup")["meters"])["price_fits"] is False


def test_without_a_sku_or_customer_there_is_nothing_to_set_up(
    billing: Billing, at_stripe: AtStripe
):
    at_stripe.used_by(billing)
    said = billing.table("stripe", "setup")
    assert "billing skus add" in said
    assert at_stripe.changes() == []
