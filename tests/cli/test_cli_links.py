"""``billing customers link`` and the scale of a SKU's meter."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa
from at_stripe import AtStripe
from commandline import Billing
from support import add_customer, make_event

from billing.container import Container
from billing.core.periods import hour_floor
from billing.postgres.schema import customers

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


def ref_of(container: Container, customer: str = "acme") -> str | None:
    return container.customers.get(customer).stripe_customer_id


def test_a_customer_is_linked_shown_and_unlinked(billing: Billing, container: Container, acme: str):
    said = billing.table("customers", "link", acme, "cus_1")
    assert "acme is cus_1 at Stripe (not checked: no STRIPE_API_KEY)" in said
    assert ref_of(container) == "cus_1"
    assert "cus_1" in billing.table("customers", "list")
    assert billing.json("customers", "link", acme, "cus_2") == {
        "customer": "acme",
        "stripe_customer_id": "cus_2",
        "stripe_deleted_at": None,
        "former": "cus_1",
    }
    assert "unmapped_customer" in billing.table("customers", "link", acme, "--unlink")
    assert ref_of(container) is None


def test_a_new_link_says_what_stays_with_the_former_one(billing: Billing, acme: str):
    billing.run("customers", "link", acme, "cus_1")
    said = billing.table("customers", "link", acme, "cus_2")
    assert "what was accepted for cus_1 stays with cus_1" in said


def test_with_a_key_stripe_is_asked(
    billing: Billing, container: Container, at_stripe: AtStripe, acme: str
):
    at_stripe.used_by(billing)
    ref = at_stripe.customer()
    assert "not checked" not in billing.table("customers", "link", acme, ref)
    assert ref_of(container) == ref


def test_who_is_not_there_or_gone_or_another_is_refused(
    billing: Billing, container: Container, at_stripe: AtStripe, acme: str
):
    at_stripe.used_by(billing)
    gone, anothers = at_stripe.customer(), at_stripe.customer("globex")
    at_stripe.delete(gone)
    for ref, said in [
        ("cus_nobody", "no customer at Stripe 'cus_nobody'"),
        (gone, "it was deleted"),
        (anothers, "'globex' by its metadata"),
    ]:
        assert said in billing.error("customers", "link", acme, ref)
        assert ref_of(container) is None
    billing.run("customers", "link", acme, anothers, "--no-check")
    assert ref_of(container) == anothers


def test_a_key_that_is_refused_links_nobody(
    billing: Billing, container: Container, at_stripe: AtStripe, acme: str
):
    at_stripe.used_by(billing)
    at_stripe.control.fault("unauthorized", path="*")
    assert "does not accept the key" in billing.error("customers", "link", acme, "cus_1")
    assert ref_of(container) is None


def test_another_customers_stripe_customer_is_refused(
    billing: Billing, container: Container, acme: str
):
    add_customer(container.engine, "globex")
    billing.run("customers", "link", acme, "cus_1")
    assert "belongs to another customer" in billing.error("customers", "link", "globex", "cus_1")


def test_who_was_deleted_at_stripe_is_shown_so_until_linked_again(
    billing: Billing, container: Container, acme: str, moment: datetime
):
    change = sa.update(customers).values(stripe_deleted_at=moment)
    with container.engine.begin() as connection:
        connection.execute(change)
    assert f"deleted {moment:%Y-%m-%d}" in " ".join(billing.table("customers", "list").split())
    assert "deleted" in billing.table("customers", "show", acme)
    billing.run("customers", "link", acme, "cus_9")
    assert "deleted" not in billing.table("customers", "show", acme)


@pytest.mark.parametrize(
    "arguments", [("acme",), ("acme", "cus_1", "--unlink"), ("acme", "--unlink", "cus_1")], ids=str
)
def test_either_an_id_or_unlink_is_needed(billing: Billing, acme: str, arguments: tuple[str, ...]):
    assert acme == "acme"
    billing.error("customers", "link", *arguments, code=2)


def test_a_sku_has_the_scale_it_was_given(billing: Billing):
    billing.run("skus", "add", "cheap", "--price", "1", "--meter-decimals", "2")
    shown = billing.json("skus", "show", "cheap")
    assert (shown["meter_decimals"], shown["meter"]) == (2, "weighbridge_main_cheap.d2")
    assert "0.01 credit" in billing.table("skus", "show", "cheap")
    assert billing.json("skus", "list")[0]["meter_decimals"] == 2
    billing.error("skus", "add", "dear", "--price", "1", "--meter-decimals", "7", code=2)
    assert "no SKU 'dear'" in billing.error("skus", "show", "dear")


def test_a_scale_can_be_changed_while_nothing_was_reported(billing: Billing, acme: str):
    assert acme == "acme"
    said = " ".join(billing.table("skus", "meter-decimals", "page-capture", "0").split())
    assert "in 1 credit by the meter weighbridge_main_page-capture.d0" in said
    assert billing.json("skus", "meter-decimals", "page-capture", "0")["meter_decimals"] == 0
    assert "no SKU 'nothing'" in billing.error("skus", "meter-decimals", "nothing", "0")
    billing.error("skus", "meter-decimals", "page-capture", "9", code=2)


def use(container: Container, when: datetime, **fields: object) -> None:
    event = make_event(metered_at=when, started_at=None, finished_at=None, **fields)
    assert container.writer.write([event.to_wire()]).inserted == 1


def test_what_the_former_meter_has_stays_and_the_new_one_gets_the_rest(
    billing: Billing, container: Container, acme: str
):
    hour = hour_floor(container.clock.now()) - timedelta(hours=3)
    use(container, hour, amount_microcredits=1_500_000)
    container.reporting.reporter().advance()
    billing.run("skus", "meter-decimals", "page-capture", "2")
    # Nothing is told twice for the change alone.
    assert container.reporting.reporter().advance().planned == 0
    use(container, hour, amount_microcredits=2_250_000)
    container.reporting.reporter().advance()
    told = {
        name: container.reporting.provider.read_back(acme, name, hour.date())
        for name in ("weighbridge_main_page-capture", "weighbridge_main_page-capture.d2")
    }
    assert [list(read.values()) for read in told.values()] == [[1_500_000], [225]]


def test_a_scale_is_not_changed_once_stripe_has_figures_of_it(
    billing: Billing, container: Container, at_stripe: AtStripe, acme: str
):
    assert acme == "acme"
    at_stripe.used_by(billing)
    billing.run("stripe", "setup")
    use(container, hour_floor(container.clock.now()) - timedelta(hours=3))
    billing.run("report", "run")
    said = billing.error("skus", "meter-decimals", "page-capture", "2")
    assert "was reported already" in said
    assert "Add another SKU" in said
    # The same scale again is no change.
    billing.run("skus", "meter-decimals", "page-capture", "6")


def test_a_scale_is_not_changed_while_nobody_knows_whether_a_report_arrived(
    billing: Billing, container: Container, at_stripe: AtStripe, acme: str
):
    assert acme == "acme"
    at_stripe.used_by(billing)
    billing.run("stripe", "setup")
    use(container, hour_floor(container.clock.now()) - timedelta(hours=3))
    at_stripe.control.fault("timeout", path="/v1/billing/meter_events", effect=False)
    billing.run("report", "run")
    (report,) = billing.json("report", "list")
    billing.run("report", "park", str(report["id"]), "--reason", "rescaling")
    assert "was reported already" in billing.error("skus", "meter-decimals", "page-capture", "2")


def test_reports_that_wait_for_a_wrong_meter_can_be_told_to_one_of_another_scale(
    billing: Billing, container: Container, at_stripe: AtStripe, acme: str
):
    # The meter was made by hand, for days: it can never be used.
    at_stripe.meter("weighbridge_main_page-capture", event_time_window="day")
    at_stripe.used_by(billing)
    container.customers.link_stripe(acme, at_stripe.customer(acme))
    hour = hour_floor(container.clock.now()) - timedelta(hours=3)
    use(container, hour, amount_microcredits=1_250_000)
    billing.run("stripe", "setup", code=1)
    billing.run("report", "run", code=1)
    said = billing.error("skus", "meter-decimals", "page-capture", "2")
    assert "1 reports of SKU 'page-capture' wait to be sent" in said
    (report,) = billing.json("report", "list")
    number = str(report["id"])
    billing.run("report", "park", number, "--reason", "another scale")
    billing.run("skus", "meter-decimals", "page-capture", "2")
    billing.run("report", "unpark", number, "--never-arrived")
    billing.run("stripe", "setup")
    assert billing.json("report", "run")["became"] == {"accepted": 1}
    (event,) = at_stripe.control.get("meter_events")
    assert event["event_name"] == "weighbridge_main_page-capture.d2"
    assert event["payload"]["value"] == "125"
