"""Deleted customers, paid checkouts, and what is nothing for us; each event once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from notices_support import Told, an_event
from structlog.testing import capture_logs
from support import NOW

from billing.catalog.customers import CustomerStore
from billing.catalog.grants import GrantStore
from billing.core.errors import NotFound
from billing.postgres.schema import customers, grants, usage_reports, webhook_events
from billing.stripe_webhooks.deletions import DELETED
from billing.stripe_webhooks.event_store import WebhookEvents
from billing.stripe_webhooks.stripe_event import EventResult
from billing.stripe_webhooks.topups import NOT_GIVEN

pytestmark = pytest.mark.postgres


@pytest.fixture
def told(engine: sa.Engine) -> Told:
    return Told(engine)


def linked(told: Told, customer: str = "acme") -> tuple[Any, Any]:
    [row] = [row for row in told.rows(customers) if row["id"] == customer]
    return row["stripe_customer_id"], row["stripe_deleted_at"]


def reports(told: Told) -> dict[str, tuple[str, str, bool]]:
    return {
        row["identifier"]: (row["state"], row["cause"], row["doubtful"])
        for row in told.rows(usage_reports)
    }


# -- deleted customers -------------------------------------------------------------------------


def test_a_deleted_customer_is_unlinked_and_nothing_more_is_sent_there(told: Told):
    told.add_report("pending", 1)
    told.add_report("unknown", 2, doubtful=True)
    told.add_report("sending", 3, lease_until=NOW + timedelta(minutes=1))
    told.add_report("accepted", 4)
    told.add_report("confirmed", 5)
    told.add_report("parked", 6)
    told.add_report("pending", 7, customer_ref="cus_new")
    told.add_report("pending", 8, provider="ledger", customer_ref="cus_acme")
    with capture_logs() as logs:
        assert told.about("customer.deleted", "cus_acme").reception == "done"
    assert linked(told) == (None, NOW.replace(microsecond=0))
    assert reports(told) == {
        "main:r1": ("parked", "customer_missing", False),
        "main:r2": ("parked", "customer_missing", True),
        "main:r3": ("sending", "", False),
        "main:r4": ("accepted", "", False),
        "main:r5": ("confirmed", "", False),
        "main:r6": ("parked", "by_hand", False),
        "main:r7": ("pending", "", False),
        "main:r8": ("pending", "", False),
    }
    [alarm] = [log for log in logs if log["log_level"] == "error"]
    assert alarm["event"] == DELETED.event
    assert "2 reports are parked" in alarm["detail"]


def test_a_late_deletion_leaves_alone_who_was_linked_since(told: Told):
    told.link("acme", "cus_new")
    told.add_report("pending", 1, customer_ref="cus_new")
    assert told.about("customer.deleted", "cus_acme").reception == "ignored"
    assert linked(told) == ("cus_new", None)
    assert reports(told)["main:r1"][0] == "pending"


def test_a_late_deletion_still_parks_what_was_to_be_sent_to_the_former_one(told: Told):
    told.add_report("pending", 1)
    told.link("acme", "cus_new")
    with capture_logs() as logs:
        assert told.about("customer.deleted", "cus_acme").reception == "done"
    assert linked(told) == ("cus_new", None)
    assert reports(told)["main:r1"] == ("parked", "customer_missing", False)
    assert not [log for log in logs if log["log_level"] == "error"]


def test_a_deleted_customer_can_be_linked_again(told: Told, engine: sa.Engine):
    told.about("customer.deleted", "cus_acme")
    CustomerStore(engine).link_stripe("acme", "cus_new")
    told.about("customer.deleted", "cus_acme", "evt_late")
    assert linked(told) == ("cus_new", None)


# -- paid checkouts ----------------------------------------------------------------------------


def session(**changes: Any) -> dict[str, Any]:
    return {
        "id": "cs_1",
        "mode": "payment",
        "payment_status": "paid",
        "customer": "cus_acme",
        "client_reference_id": None,
        "currency": "usd",
        "amount_total": 500,
        "metadata": {},
    } | changes


def checkout(told: Told, event_id: str = "evt_1", **changes: Any) -> str:
    told.sessions["cs_1"] = session(**changes)
    return told.about("checkout.session.completed", "cs_1", event_id).reception.value


def test_a_paid_checkout_is_a_grant(told: Told):
    told.sessions["cs_1"] = session()
    received = told.about("checkout.session.completed", "cs_1")
    assert (received.reception, received.customers) == ("done", {"acme"})
    assert told.granted() == 500_000_000
    [grant] = told.rows(grants)
    assert (grant["reference"], grant["note"]) == ("stripe:cs_1", "checkout cs_1")


def test_the_credits_of_a_checkout_are_given_once_by_whatever_event(told: Told):
    told.sessions["cs_1"] = session()
    kinds = ("checkout.session.completed", "checkout.session.async_payment_succeeded")
    results = [
        told.about(kind, "cs_1", f"evt_{kind}_{number}").reception
        for kind in kinds
        for number in range(2)
    ]
    assert results == ["done", "ignored", "ignored", "ignored"]
    assert told.granted() == 500_000_000


def test_the_credits_are_given_once_whoever_is_linked_by_then(told: Told):
    checkout(told)
    told.link("acme", None)
    told.link("globex", "cus_acme")
    assert checkout(told, "evt_2") == "ignored"
    assert "given to acme before" in told.events()["evt_2"][1]
    assert told.granted("globex") == 0


def test_twenty_events_of_one_checkout_at_once_give_one_grant(told: Told):
    told.sessions["cs_1"] = session()
    with ThreadPoolExecutor(10) as pool:
        results = list(
            pool.map(
                lambda number: (
                    told.about(
                        "checkout.session.completed", "cs_1", f"evt_{number % 5}"
                    ).reception.value
                ),
                range(20),
            )
        )
    assert told.granted() == 500_000_000
    assert sorted(results) == ["already"] * 15 + ["done"] + ["ignored"] * 4


def test_a_customer_whom_stripe_does_not_know_is_named_by_the_shop(told: Told):
    assert checkout(told, customer=None, client_reference_id="globex") == "done"
    assert told.granted("globex") == 500_000_000


def test_who_paid_goes_before_who_is_named(told: Told):
    checkout(told, client_reference_id="globex")
    assert (told.granted("acme"), told.granted("globex")) == (500_000_000, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"payment_status": "unpaid"},
        {"payment_status": "no_payment_required"},
        {"mode": "subscription"},
        {"mode": "setup"},
        {"metadata": {"weighbridge_credits": "0"}},
    ],
    ids=repr,
)
def test_what_is_no_paid_top_up_is_ignored(told: Told, changes: dict[str, Any]):
    assert checkout(told, **changes) == "ignored"
    assert told.granted() == 0


def test_a_payment_that_takes_days_is_a_grant_when_it_came(told: Told):
    assert checkout(told, payment_status="unpaid") == "ignored"
    told.sessions["cs_1"] = session()
    told.about("checkout.session.async_payment_succeeded", "cs_1", "evt_2")
    assert told.granted() == 500_000_000


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"customer": "cus_new"}, "cus_new (customer)"),
        ({"customer": None, "client_reference_id": "nobody"}, "nobody (client_reference_id)"),
        ({"currency": "eur"}, "paid in EUR"),
        ({"metadata": {"weighbridge_credits": "a lot"}}, "weighbridge_credits"),
        ({"amount_total": 10**16}, "more than 2^53"),
    ],
)
def test_what_cannot_be_given_is_kept_with_its_reason(
    told: Told, changes: dict[str, Any], reason: str
):
    with capture_logs() as logs:
        assert checkout(told, **changes) == "kept"
    assert reason in told.events()["evt_1"][1]
    assert NOT_GIVEN.event in [log["event"] for log in logs]
    assert told.granted() == told.granted("globex") == 0
    # Told again by Stripe, it is what it was.
    assert checkout(told, **changes) == "already"


def test_a_grant_that_would_pass_the_ceiling_is_kept(told: Told, engine: sa.Engine):
    GrantStore(engine).grant("acme", 2**53, "all there is")
    assert checkout(told) == "kept"
    assert "passes 2^53" in told.events()["evt_1"][1]
    assert told.granted() == 2**53


def test_what_was_kept_is_given_once_the_customer_is_linked(told: Told):
    checkout(told, customer="cus_new")
    assert told.notices.retry("evt_1").reception == "kept"
    told.link("globex", "cus_new")
    again = told.notices.retry("evt_1")
    assert (again.reception, again.customers) == ("done", {"globex"})
    assert told.granted("globex") == 500_000_000
    assert told.notices.retry("evt_1").reception == "already"
    assert told.granted("globex") == 500_000_000
    [row] = told.rows(webhook_events)
    assert (row["result"], row["body"]) == ("done", None)


def test_eight_retries_at_once_give_one_grant(told: Told):
    checkout(told, customer="cus_new")
    told.link("globex", "cus_new")
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: told.notices.retry("evt_1").reception.value, range(8)))
    assert sorted(results) == ["already"] * 7 + ["done"]
    assert told.granted("globex") == 500_000_000


def test_a_checkout_that_stripe_does_not_have_is_kept(told: Told):
    assert told.about("checkout.session.completed", "cs_none").reception == "kept"
    assert "cs_none" in told.events()["evt_1"][1]


# -- what is nothing for us, and what cannot be read ---------------------------------------------


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"type": "charge.succeeded"}, "nothing is done about charge.succeeded"),
        ({"livemode": True}, "it is of live mode, and this installation of test"),
    ],
)
def test_what_is_nothing_for_us_is_ignored_and_written_down(
    told: Told, changes: dict[str, Any], detail: str
):
    told.add_report("pending", 1)
    assert told.about("customer.deleted", "cus_acme", **changes).reception == "ignored"
    assert told.events() == {"evt_1": ("ignored", detail)}
    assert linked(told) == ("cus_acme", None)


def test_a_live_installation_ignores_tests(told: Told):
    told.notices = told.new_notices(live=True)
    assert told.about("customer.deleted", "cus_acme").reception == "ignored"
    assert told.about("customer.deleted", "cus_acme", "evt_2", livemode=True).reception == "done"


@pytest.mark.parametrize(
    "body", [b"", b"not JSON", b"\xff", b'{"object": "event"}', b'{"id": "evt\\u0000"}']
)
def test_what_cannot_be_read_is_kept_as_it_came_and_once(told: Told, body: bytes):
    assert told.notices.receive(body).reception == "kept"
    assert told.notices.receive(body).reception == "already"
    [row] = told.rows(webhook_events)
    assert (row["type"], row["body"], row["result"]) == ("unreadable", body, "kept")
    assert told.notices.retry(row["event_id"]).reception == "kept"


def test_what_could_not_be_read_and_now_can_be_is_done_under_its_own_id(told: Told):
    body = json.dumps(an_event("customer.deleted", "cus_acme")).encode()
    kept = webhook_events.insert().values(
        provider="stripe", event_id="sha256:old", type="unreadable", happened_at=NOW,
        received_at=NOW, result="kept", body=body,
    )  # fmt: skip
    with told.engine.begin() as connection:
        connection.execute(kept)
    assert told.notices.retry("sha256:old").reception == "done"
    assert linked(told)[0] is None
    assert {name: result for name, (result, _) in told.events().items()} == {
        "sha256:old": "done",
        "evt_1": "done",
    }
    assert told.notices.receive(body).reception == "already"


def test_what_was_told_under_its_own_id_meanwhile_is_not_done_twice(told: Told):
    told.sessions["cs_1"] = session()
    body = json.dumps(an_event("checkout.session.completed", "cs_1")).encode()
    kept = webhook_events.insert().values(
        provider="stripe", event_id="sha256:old", type="unreadable", happened_at=NOW,
        received_at=NOW, result="kept", body=body,
    )  # fmt: skip
    with told.engine.begin() as connection:
        connection.execute(kept)
    told.notices.receive(body)
    assert told.notices.retry("sha256:old").reception == "ignored"
    assert told.events()["evt_1"][0] == "done"
    assert told.granted() == 500_000_000


def test_a_retry_of_what_was_never_told_says_so(told: Told):
    for name in ("evt_none", "evt\x00"):
        with pytest.raises(NotFound, match="billing stripe events"):
            told.notices.retry(name)


def test_an_effect_that_fails_leaves_no_event_behind(told: Told, engine: sa.Engine):
    told.sessions["cs_1"] = session()
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE grants RENAME TO grants_away"))
    with pytest.raises(sa.exc.ProgrammingError):
        told.about("checkout.session.completed", "cs_1")
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE grants_away RENAME TO grants"))
    assert told.events() == {}
    assert checkout(told) == "done"
    assert told.granted() == 500_000_000


def test_events_are_listed_newest_first(told: Told, engine: sa.Engine):
    told.about("charge.succeeded", "ch_1", "evt_1")
    told.clock.advance(timedelta(minutes=1))
    checkout(told, "evt_2", customer="cus_new")
    events = WebhookEvents(engine)
    assert [event.event_id for event in events.list("stripe")] == ["evt_2", "evt_1"]
    assert [event.event_id for event in events.list("stripe", limit=1)] == ["evt_2"]
    [kept] = events.list("stripe", result=EventResult.KEPT)
    assert (kept.event_id, kept.received_at) == ("evt_2", NOW + timedelta(minutes=1))
    assert events.list("another") == []
