"""``billing stripe events``: what Stripe has told, and trying what was kept again."""

from __future__ import annotations

import json

import pytest
from at_stripe import AtStripe
from commandline import Billing

from billing.container import Container

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


def tell(billing: Billing, container: Container, at_stripe: AtStripe, customer: str) -> str:
    """A paid checkout that was told to this installation; returns the event's id."""
    at_stripe.used_by(billing)
    at_stripe.control.post("checkouts", customer=customer, amount_total=500)
    [*_, event] = at_stripe.control.get("events")
    settings = billing.environment
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            if value is not None:
                patch.setenv(name, value)
        with Container(type(container.settings)()) as own:
            own.reporting.webhook_processor.receive(json.dumps(event).encode())
    return str(event["id"])


@pytest.mark.usefixtures("container")
def test_nothing_told_is_said(billing: Billing):
    assert "Events told by Stripe: none" in billing.table("stripe", "events")
    assert billing.json("stripe", "events") == []


def test_a_kept_event_is_listed_with_its_reason_and_done_when_it_can_be(
    billing: Billing, container: Container, at_stripe: AtStripe, acme: str
):
    paying = at_stripe.customer()
    event = tell(billing, container, at_stripe, paying)
    shown = " ".join(billing.table("stripe", "events").split())
    assert event in shown
    assert "kept" in shown
    assert "billing stripe events retry EVENT_ID" in shown
    [told] = billing.json("stripe", "events", "--result", "kept")
    assert (told["id"], told["type"]) == (event, "checkout.session.completed")
    assert paying in told["detail"]
    still = billing.run("stripe", "events", "retry", event, code=1)
    assert "still not possible" in " ".join(still.stdout.split())

    container.customers.link_stripe(acme, paying)
    done = billing.json("stripe", "events", "retry", event)
    assert (done["id"], done["result"]) == (event, "done")
    assert container.grants.granted(acme) == 600_000_000
    again = billing.run("stripe", "events", "retry", event)
    assert "dealt with before" in " ".join(again.stdout.split())
    assert container.grants.granted(acme) == 600_000_000
    assert billing.json("stripe", "events", "--result", "kept") == []
    assert [one["result"] for one in billing.json("stripe", "events")] == ["done"]


def test_a_retry_tells_redis_of_the_new_balance(
    billing: Billing, container: Container, at_stripe: AtStripe, acme: str
):
    container.account_loader.rebuild(acme)
    paying = at_stripe.customer()
    event = tell(billing, container, at_stripe, paying)
    container.customers.link_stripe(acme, paying)
    billing.run("stripe", "events", "retry", event)
    view = container.quota.account(acme)
    assert view is not None
    assert view.granted_microcredits == 600_000_000


@pytest.mark.usefixtures("container")
def test_an_event_that_was_never_told_is_said_so(billing: Billing):
    message = billing.error("stripe", "events", "retry", "evt_none")
    assert "no event 'evt_none': see billing stripe events" in message


def test_with_stripe_away_a_retry_says_so_and_the_event_stays_kept(
    billing: Billing, container: Container, at_stripe: AtStripe
):
    event = tell(billing, container, at_stripe, at_stripe.customer())
    at_stripe.control.fault("server_error", method="GET")
    assert "Stripe" in billing.error("stripe", "events", "retry", event)
    assert [one["result"] for one in billing.json("stripe", "events")] == ["kept"]
