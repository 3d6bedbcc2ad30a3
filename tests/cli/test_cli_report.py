"""``billing report`` on real servers, with the built-in provider and a local Stripe."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from at_stripe import AtStripe
from commandline import Billing
from support import add_customer, add_sku, make_event

from billing.container import Container
from billing.core.periods import hour_floor
from billing.core.usage_event import usage_line

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

EVENTS = "/v1/billing/meter_events"
METER = "weighbridge_main_page-capture"


@pytest.fixture
def hour(container: Container) -> datetime:
    """An hour that is over, by the real clock that the command reads."""
    return hour_floor(container.clock.now()) - timedelta(hours=3)


@pytest.fixture
def at_ledger(billing: Billing) -> Billing:
    """The command, with the built-in provider whatever key there is."""
    billing.environment["WEIGHBRIDGE_PROVIDER"] = "ledger"
    return billing


@pytest.fixture
def there(billing: Billing, at_stripe: AtStripe, acme: str) -> AtStripe:
    """A local Stripe that is set up for ``acme`` and ``page-capture``."""
    assert acme == "acme"
    at_stripe.used_by(billing)
    billing.run("stripe", "setup")
    return at_stripe


def use(
    container: Container,
    hour: datetime,
    amount: int = 1_000_000,
    customer: str = "acme",
    sku: str = "page-capture",
) -> None:
    event = make_event(
        metered_at=hour, customer=customer, sku=sku, line=usage_line(sku),
        amount_microcredits=amount, held_microcredits=amount,
    )  # fmt: skip
    assert container.writer.write([event.to_wire()]).inserted == 1


def flat(text: str) -> str:
    return " ".join(text.split())


def reports(billing: Billing, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = billing.json("report", "list", *arguments)
    return found


def the_report(billing: Billing) -> dict[str, Any]:
    (report,) = reports(billing)
    return report


def time_passes(container: Container, **by: float) -> None:
    """Everything that was sent was sent so much earlier, and is read back now."""
    past = sa.text(
        """
        UPDATE usage_reports SET answered_at = answered_at - :by, confirm_at = confirm_at - :by,
            next_at = next_at - :by, first_sent_at = first_sent_at - :by,
            created_at = created_at - :by
        """
    )
    with container.engine.begin() as connection:
        connection.execute(past, {"by": timedelta(**by)})


# ---- run ----


def test_what_is_due_is_reported_and_then_read_back(
    at_ledger: Billing, container: Container, acme: str, hour: datetime
):
    use(container, hour, 1_500_000)
    first = at_ledger.json("report", "run")
    assert (first["provider"], first["planned"], first["sent"]) == ("ledger", 1, 1)
    assert (first["became"], first["stopped"], first["blocked"]) == ({"accepted": 1}, {}, {})
    time_passes(container, minutes=20)
    said = at_ledger.table("report", "run")
    assert "reported to ledger: 0 planned, 0 sent" in said
    assert "read back: 1 confirmed" in said
    assert the_report(at_ledger)["state"] == "confirmed"
    assert acme == "acme"


def test_nothing_is_read_back_where_that_was_not_wanted(
    at_ledger: Billing, container: Container, acme: str, hour: datetime
):
    assert acme == "acme"
    use(container, hour)
    at_ledger.run("report", "run")
    time_passes(container, minutes=20)
    assert at_ledger.json("report", "run", "--no-confirm")["read_back"] == []
    assert the_report(at_ledger)["state"] == "accepted"


def test_the_hour_under_way_is_reported_only_if_asked_for(
    at_ledger: Billing, container: Container, acme: str
):
    assert acme == "acme"
    use(container, hour_floor(container.clock.now()))
    assert at_ledger.json("report", "run")["planned"] == 0
    assert at_ledger.json("report", "run", "--up-to-now")["became"] == {"accepted": 1}


def test_a_run_that_may_not_last_begins_nothing_more(
    at_ledger: Billing, container: Container, acme: str, hour: datetime
):
    assert acme == "acme"
    use(container, hour)
    assert at_ledger.json("report", "run", "--seconds", "30")["sent"] == 1
    at_ledger.error("report", "run", "--seconds", "0", code=2)


def test_a_refused_key_stops_the_run_and_loses_nothing(
    billing: Billing, container: Container, there: AtStripe, hour: datetime
):
    use(container, hour)
    there.control.fault("unauthorized", path=EVENTS)
    said = flat(billing.table("report", "run", code=1))
    assert "stopped (stripe): key_refused" in said
    assert "no usage is lost" in said
    assert "https://dashboard.stripe.com/test/apikeys" in said
    assert the_report(billing)["state"] == "pending"
    assert billing.json("report", "run")["became"] == {"accepted": 1}


def test_a_key_that_cannot_be_used_ends_the_run_before_it_begins(
    billing: Billing, container: Container, acme: str, hour: datetime
):
    assert acme == "acme"
    use(container, hour)
    billing.environment["STRIPE_API_KEY"] = "pk_test_abc"
    assert "publishable key" in billing.error("report", "run")


def test_a_meter_that_is_not_there_blocks_its_usage_only(
    billing: Billing, container: Container, there: AtStripe, hour: datetime
):
    assert there.url
    add_sku(container.engine, "premium-proxy-search")
    use(container, hour)
    use(container, hour, sku="premium-proxy-search")
    said = flat(billing.table("report", "run", code=1))
    assert "nothing is sent to the meter weighbridge_main_premium-proxy-search" in said
    assert "billing stripe setup" in said
    states = {each["sku"]: each["state"] for each in reports(billing)}
    assert states == {"page-capture": "accepted", "premium-proxy-search": "pending"}
    billing.run("stripe", "setup")
    assert billing.json("report", "run")["became"] == {"accepted": 1}


def test_an_answer_that_was_lost_is_unknown_and_counts_once(
    billing: Billing, container: Container, there: AtStripe, hour: datetime
):
    use(container, hour)
    there.control.fault("timeout", path=EVENTS)
    assert billing.json("report", "run")["became"] == {"unknown": 1}
    time_passes(container, minutes=1)
    done = billing.json("report", "run")
    assert (done["became"], done["causes"]) == ({"accepted": 1}, {"duplicate_identifier": 1})


# ---- status ----


def test_the_status_adds_up_and_needs_nobody(
    at_ledger: Billing, container: Container, acme: str, hour: datetime
):
    assert acme == "acme"
    use(container, hour, 2_500_000)
    use(container, hour_floor(container.clock.now()), 500_000)
    at_ledger.run("report", "run")
    status = at_ledger.json("report", "status")
    assert (status["provider"], status["needs_somebody"]) == ("ledger", False)
    assert status["states"] == {"accepted": {"reports": 1, "amount_microcredits": 2_500_000}}
    sums = [one for month in status["months"] for one in month["sums"]]
    terms = {
        name: sum(one[name] for one in sums)
        for name in ("logged", "accepted", "open", "parked", "unclaimed", "carried")
    }
    assert terms == {
        "logged": 3_000_000, "accepted": 2_500_000, "open": 0, "parked": 0,
        "unclaimed": 500_000, "carried": 0,
    }  # fmt: skip
    assert all(one["adds_up"] for one in sums)
    said = flat(at_ledger.table("report", "status"))
    assert "ledger (WEIGHBRIDGE_PROVIDER)" in said
    assert "nobody is needed" in said


def test_an_empty_installation_needs_nobody(at_ledger: Billing):
    said = at_ledger.table("report", "status")
    assert "nothing was used" in said
    assert "none yet" in said


def test_what_is_parked_is_told_with_its_remedy(
    billing: Billing, container: Container, there: AtStripe, hour: datetime
):
    assert there.url
    add_customer(container.engine, "globex")
    use(container, hour, 4_000_000, customer="globex")
    billing.run("report", "run")
    status = billing.json("report", "status", code=1)
    (parked,) = status["parked"]
    assert (parked["cause"], parked["reports"]) == ("unmapped_customer", 1)
    assert parked["amount_microcredits"] == 4_000_000
    said = flat(billing.table("report", "status", code=1))
    assert "remedy for unmapped_customer: billing stripe setup" in said
    assert "was deleted there" in said
    assert "nobody is needed" not in said
    (first,) = reports(billing)
    assert "remedy: billing stripe setup" in flat(billing.table("report", "show", str(first["id"])))
    # And it goes out by itself once they are linked.
    billing.run("stripe", "setup")
    assert billing.json("report", "run")["became"] == {"accepted": 1}
    assert billing.json("report", "status")["parked"] == []
    # What another revision followed needs nothing any more.
    assert "remedy" not in billing.table("report", "show", str(first["id"]))


def test_how_long_a_dead_provider_has_kept_usage_waiting(
    billing: Billing, container: Container, there: AtStripe, hour: datetime
):
    use(container, hour)
    there.control.fault("server_error", path=EVENTS, times=3)
    billing.run("report", "run")
    assert billing.json("report", "status")["needs_somebody"] is False
    time_passes(container, hours=21)
    status = billing.json("report", "status", code=1)
    levels = {each["check"]: each["level"] for each in status["checks"]}
    assert (levels["Reports"], levels["Unknown reports"]) == ("fail", "warn")
    said = flat(billing.table("report", "status", code=1))
    assert "waited for 21 h" in said
    assert "an invoice that is made meanwhile lacks it" in said


def test_meters_are_asked_for_only_with_check(
    billing: Billing, container: Container, there: AtStripe
):
    add_sku(container.engine, "premium-proxy-search")
    there.control.client.post("/_sandbox/reset", json={}).raise_for_status()
    assert billing.json("report", "status")["blocked"] is None
    assert there.changes() == []
    blocked = billing.json("report", "status", "--check", code=1)["blocked"]
    assert set(blocked) == {METER, "weighbridge_main_premium-proxy-search"}
    billing.run("stripe", "setup")
    assert "every meter is as it has to be" in billing.table("report", "status", "--check")


def test_a_former_provider_that_owes_an_answer_is_told(
    billing: Billing, container: Container, there: AtStripe, hour: datetime
):
    use(container, hour)
    there.control.fault("timeout", path=EVENTS)
    billing.run("report", "run")
    billing.environment["WEIGHBRIDGE_PROVIDER"] = "ledger"
    status = billing.json("report", "status")
    assert status["former_providers"] == [{"provider": "stripe", "can_be_asked": True}]
    assert "still owes answers" in billing.table("report", "status")
    billing.environment["STRIPE_API_KEY"] = None
    said = flat(billing.table("report", "status", code=1))
    assert "the former provider stripe owes answers, and cannot be asked" in said


def test_sealed_periods_and_carried_usage_are_listed(
    at_ledger: Billing, container: Container, acme: str, hour: datetime
):
    use(container, hour)
    at_ledger.run("report", "run")
    insert = sa.text(
        """
        INSERT INTO report_seals (provider, customer_id, customer_ref, meter, period_start,
            period_end, invoice_ref, billed_value, noticed_at)
        VALUES ('ledger', :acme, :acme, :meter, :start, :end, 'in_1', 1000000, :end)
        """
    )
    with container.engine.begin() as connection:
        connection.execute(
            insert,
            {"acme": acme, "meter": METER, "start": hour, "end": hour + timedelta(hours=1)},
        )
    use(container, hour, 250_000)
    at_ledger.run("report", "run", "--up-to-now")
    status = at_ledger.json("report", "status")
    assert [seal["invoice_ref"] for seal in status["sealed"]] == ["in_1"]
    (carry,) = status["carries"]
    assert (carry["reason"], carry["amount_microcredits"]) == ("late", 250_000)
    said = at_ledger.table("report", "status")
    assert "in_1" in said
    assert "carried this month, late: 1 lines, 0.25 credits" in said
    carried = [row for row in reports(at_ledger) if row["hour"].startswith(f"{hour:%Y-%m-%dT%H}")]
    shown = at_ledger.table("report", "show", str(carried[0]["id"]))
    assert "Carried out of this hour" in shown


# ---- list, show ----


def test_reports_are_listed_by_what_is_asked_for(
    billing: Billing, container: Container, there: AtStripe, hour: datetime
):
    assert there.url
    add_customer(container.engine, "globex")
    use(container, hour)
    use(container, hour, customer="globex")
    billing.run("report", "run")
    assert {each["customer"] for each in reports(billing)} == {"acme", "globex"}
    for arguments, customers in [
        (("--state", "accepted"), ["acme"]),
        (("--state", "accepted", "--state", "parked"), ["globex", "acme"]),
        (("--customer", "globex"), ["globex"]),
        (("--cause", "unmapped_customer"), ["globex"]),
        (("--sku", "page-capture"), ["globex", "acme"]),
        (("--provider", "ledger"), []),
    ]:
        found = [each["customer"] for each in reports(billing, *arguments)]
        assert sorted(found) == sorted(customers), arguments
    assert len(reports(billing, "--limit", "1")) == 1
    table = billing.table("report", "list")
    assert "unmapped_customer" in table
    for arguments in [("--customer", "nobody"), ("--sku", "nothing")]:
        assert "no " in billing.error("report", "list", *arguments)
    billing.error("report", "list", "--state", "sleeping", code=2)


def test_a_report_is_shown_with_its_request_and_its_hours_history(
    at_ledger: Billing, container: Container, acme: str, hour: datetime
):
    use(container, hour, 1_000_000)
    at_ledger.run("report", "run")
    use(container, hour, 500_000)
    at_ledger.run("report", "run")
    first, last = sorted(reports(at_ledger, "--revisions"), key=lambda row: row["revision"])
    assert [first["latest"], last["latest"]] == [False, True]
    shown = at_ledger.json("report", "show", str(first["id"]))
    assert [row["id"] for row in shown["revisions"]] == [first["id"], last["id"]]
    assert shown["identifier"].endswith(":r1")
    assert (shown["customer_ref"], shown["value"]) == (acme, 1_000_000)
    table = flat(at_ledger.table("report", "show", str(last["id"])))
    assert last["identifier"] in "".join(at_ledger.table("report", "show", str(last["id"])).split())
    assert "1,500,000" in table
    assert "no report '999'" in at_ledger.error("report", "show", "999")


def test_the_longest_names_and_largest_amounts_still_fit_the_width(
    at_ledger: Billing, container: Container, hour: datetime
):
    customer, sku = "C" * 64, "s" * 64
    add_customer(container.engine, customer)
    add_sku(container.engine, sku)
    for _ in range(2):
        # Two of the largest events: too much for one hour at any provider.
        use(container, hour, 2**53, customer=customer, sku=sku)
    use(container, hour - timedelta(hours=1), 10**12, customer=customer, sku=sku)
    at_ledger.run("report", "run")
    for row in reports(at_ledger):
        at_ledger.table("report", "show", str(row["id"]))
    assert {row["cause"] for row in reports(at_ledger)} == {"invalid_value", "taken"}
    at_ledger.table("report", "list")
    at_ledger.table("report", "status", code=1)
    at_ledger.table("reconcile", "provider", "--month", f"{hour:%Y-%m}")


# ---- retry, park, unpark ----


def test_parked_reports_are_sent_again_by_number_or_cause(
    billing: Billing, container: Container, there: AtStripe, hour: datetime
):
    meter = there.person.billing.meters.list().data[0].id
    for back in range(3):
        use(container, hour - timedelta(hours=back))
    there.person.billing.meters.deactivate(meter)
    billing.run("report", "run", code=1)
    there.person.billing.meters.reactivate(meter)
    assert {each["state"] for each in reports(billing)} == {"pending"}
    for each in reports(billing):
        billing.run("report", "park", str(each["id"]), "--reason", "a test")
    ids = [str(each["id"]) for each in reports(billing, "--cause", "by_hand")]
    assert len(ids) == 3
    (one,) = billing.json("report", "retry", ids[0])
    assert one == {"id": int(ids[0]), "retried": True, "detail": ""}
    assert len(billing.json("report", "retry", "--cause", "by_hand")) == 2
    assert billing.json("report", "retry", "--cause", "by_hand") == []
    assert billing.json("report", "run")["became"] == {"accepted": 3}
    assert there.count("meter_events") == 3


def test_more_parked_reports_than_a_page_are_all_sent_again(
    billing: Billing, container: Container, there: AtStripe, hour: datetime,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    assert there.url
    monkeypatch.setattr("billing.cli.report._AT_ONCE", 2)
    add_customer(container.engine, "globex")
    for back in range(5):
        use(container, hour - timedelta(hours=back), customer="globex")
    billing.run("report", "run")
    # Nobody at Stripe: none of them can be, and the pages end all the same.
    results = billing.json("report", "retry", "--cause", "unmapped_customer", code=1)
    assert [each["retried"] for each in results] == [False] * 5
    assert {each["detail"] for each in results} == {"link the customer; then it is sent by itself"}


def test_what_cannot_be_sent_again_says_why(
    at_ledger: Billing, container: Container, acme: str, hour: datetime
):
    assert acme == "acme"
    use(container, hour)
    at_ledger.run("report", "run")
    number = str(the_report(at_ledger)["id"])
    results = at_ledger.json("report", "retry", number, "999", code=1)
    assert [each["detail"] for each in results] == [
        "it is accepted, not parked", "there is no such report",
    ]  # fmt: skip
    said = at_ledger.table("report", "retry", number, code=1)
    assert "not parked" in said
    assert not said.startswith("Sent again")
    at_ledger.error("report", "retry", code=2)
    at_ledger.error("report", "retry", "1", "--cause", "by_hand", code=2)


def test_a_report_is_held_back_and_let_go(
    billing: Billing, container: Container, there: AtStripe, hour: datetime
):
    use(container, hour)
    there.control.fault("unauthorized", path=EVENTS)
    billing.run("report", "run", code=1)
    number = str(the_report(billing)["id"])
    said = billing.table("report", "park", number, "--reason", "disputed")
    assert f"report {number} was pending and is parked (by_hand)" in said
    assert the_report(billing)["detail"] == "disputed"
    # Held back is held back, also when more comes to the hour.
    use(container, hour)
    assert billing.json("report", "run")["became"] == {}
    held = the_report(billing)
    assert (held["state"], held["cause"], held["revision"]) == ("parked", "by_hand", 2)
    assert "pending" in billing.table("report", "unpark", str(held["id"]))
    assert billing.json("report", "run")["became"] == {"accepted": 1}
    assert "is accepted: only one that is pending" in billing.error(
        "report", "park", str(held["id"]), "--reason", "too late"
    )
    assert "it is accepted, not parked" in billing.error("report", "unpark", str(held["id"]))


@pytest.mark.parametrize(
    ("option", "state", "then"),
    [("--arrived", "accepted", {}), ("--never-arrived", "parked", {"accepted": 1})],
)
def test_a_person_says_whether_a_report_without_an_answer_arrived(
    billing: Billing, container: Container, there: AtStripe, hour: datetime,
    option: str, state: str, then: dict[str, int],
):  # fmt: skip
    use(container, hour)
    there.control.fault("timeout", path=EVENTS, effect=option == "--arrived")
    assert billing.json("report", "run")["became"] == {"unknown": 1}
    number = str(the_report(billing)["id"])
    billing.run("report", "park", number, "--reason", "looking")
    assert billing.json("report", "unpark", number, option)["state"] == state
    assert billing.json("report", "run")["became"] == then
    assert there.count("meter_events") == 1


def test_what_was_never_sent_cannot_have_arrived(
    billing: Billing, container: Container, there: AtStripe, hour: datetime
):
    use(container, hour)
    there.control.fault("unauthorized", path=EVENTS)
    billing.run("report", "run", code=1)
    number = str(the_report(billing)["id"])
    billing.run("report", "park", number, "--reason", "looking")
    assert "it cannot have arrived" in billing.error("report", "unpark", number, "--arrived")


# ---- reconcile provider ----


def test_log_reports_and_provider_agree(
    billing: Billing, container: Container, there: AtStripe, hour: datetime
):
    assert there.url
    use(container, hour)
    billing.run("report", "run")
    month = f"{hour:%Y-%m}"
    found = billing.json("reconcile", "provider", "--month", month)
    assert (found["provider"], found["month"]) == ("stripe", month)
    assert [day["agreement"] for day in found["days"]] == ["agrees"]
    assert "every day agrees" in billing.table("reconcile", "provider", "--month", month)


def test_a_figure_that_somebody_changed_at_the_provider_is_found(
    billing: Billing, container: Container, there: AtStripe, hour: datetime
):
    use(container, hour)
    billing.run("report", "run")
    row = the_report(billing)
    event: Any = {
        "event_name": METER,
        "payload": {"stripe_customer_id": row["customer_ref"], "value": "7"},
        "timestamp": int(hour.timestamp()) + 1800,
    }
    there.person.billing.meter_events.create(event)
    time_passes(container, hours=2)
    month = ("--month", f"{hour:%Y-%m}")
    (day,) = billing.json("reconcile", "provider", *month, code=1)["days"]
    assert (day["agreement"], day["accepted"], day["read"]) == ("differs", 1_000_000, 7)
    said = flat(billing.table("reconcile", "provider", *month, code=1))
    # The verdict is broken over the lines of its column.
    for part in (f"differs at {hour:%H}:00", "1,000,000, counted 7"):
        assert part in said
    assert billing.json("reconcile", "provider", *month, "--customer", "acme", code=1)["days"]
    assert "no customer 'nobody'" in billing.error("reconcile", "provider", "--customer", "nobody")


def test_what_was_not_reported_is_under_way_while_its_day_is_not_over(
    at_ledger: Billing, container: Container, acme: str
):
    assert acme == "acme"
    use(container, hour_floor(container.clock.now()))
    found = at_ledger.json("reconcile", "provider")
    assert [day["agreement"] for day in found["days"]] == ["under way"]
    assert found["days"][0]["unreported_microcredits"] == 1_000_000


# ---- doctor ----


@pytest.mark.rabbitmq
def test_the_doctor_knows_of_reporting(
    billing: Billing, container: Container, there: AtStripe, hour: datetime
):
    assert there.url
    add_customer(container.engine, "globex")
    use(container, hour, customer="globex")
    billing.run("report", "run")
    checks = {each["check"]: each for each in billing.json("doctor")["checks"]}
    assert checks["Provider"]["found"] == "stripe, test mode (STRIPE_API_KEY is set)"
    assert checks["Webhooks"]["level"] == "warn"
    assert checks["Last reporting run"]["level"] == "ok"
    assert checks["Parked reports"]["found"] == "unmapped_customer 1"
    billing.environment["STRIPE_API_KEY"] = "nonsense"
    checks = {each["check"]: each for each in billing.json("doctor", code=1)["checks"]}
    assert checks["Provider"]["level"] == "fail"
    assert "nonsense" not in str(checks)
