"""Reading back at Stripe: late sums, deleted customers, missing meters, outages."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from confirm_support import Desk, at_stripe
from reporting_support import LAST_HOUR, Container
from stripe_bench import METERS, LocalStripe, delete

from billing.providers.port import ProviderCause

SUMMARIES = f"{METERS}/*/event_summaries"
HOUR = timedelta(hours=1)
GONE = ProviderCause.CUSTOMER_MISSING.value


@pytest.fixture
def desk(container: Container, local: LocalStripe) -> Desk:
    """A log, an outbox and a local Stripe."""
    return at_stripe(container, local)


@pytest.fixture
def another(local: LocalStripe) -> str:
    """A customer at Stripe that nobody is linked to."""
    return local.person.customers.create({"name": "Acme, again"}).id


def parked(desk: Desk) -> tuple[int, int, int, int]:
    """Accepted, open, parked and unclaimed microcredits of acme's page-capture."""
    sums = desk.container.sums()["acme", "page-capture"]
    return sums.accepted, sums.open, sums.parked, sums.unclaimed


# ---- Stripe is late ----


def test_sums_that_come_within_the_hour_are_waited_for(desk: Desk, local: LocalStripe) -> None:
    local.control.post("settings", summary_seconds=50 * 60)
    desk.container.use(100)
    desk.advance()
    desk.later(minutes=15)
    done = desk.confirm()
    assert (done.confirmed, done.waiting, done.resent) == (0, 1, 0)
    desk.later(minutes=45)
    assert desk.confirm().confirmed == 1
    assert len(desk.rows()) == 1
    desk.assert_all_confirmed()


def test_sums_that_come_later_cost_a_resend_and_nothing_else(
    desk: Desk, local: LocalStripe
) -> None:
    local.control.post("settings", summary_seconds=2.5 * 3600)
    desk.container.use(100)
    desk.container.use(11, customer="globex")
    for _ in range(24):
        desk.advance()
        desk.later(minutes=30)
        desk.confirm()
    assert 2 < len(desk.rows()) <= 8
    desk.assert_all_confirmed()


def test_sums_that_are_very_late_end_in_agreement_too(desk: Desk, local: LocalStripe) -> None:
    local.control.post("settings", summary_seconds=10 * 3600)
    desk.container.use(100)
    for _ in range(12):
        desk.advance()
        desk.later(minutes=30)
        desk.confirm()
    assert desk.rows()[-1] == (4, "parked", "differs")
    desk.later(days=1)
    assert desk.confirm().confirmed == 1
    desk.assert_all_confirmed()


# ---- customers that are not there ----


def test_what_a_deleted_customer_was_told_is_parked_and_goes_to_its_replacement(
    desk: Desk, local: LocalStripe, another: str
) -> None:
    desk.container.use(100, LAST_HOUR - HOUR)
    desk.advance()
    desk.later(minutes=15)
    desk.confirm()
    delete(local, desk.refs["acme"])
    desk.container.use(50)
    desk.container.use(7, customer="globex")
    desk.advance()
    desk.later(minutes=15)
    done = desk.confirm()
    assert (done.confirmed, done.parked, done.unanswered, done.stopped) == (1, 1, 0, "")
    assert desk.rows()[1:2] == [(1, "parked", GONE)]
    assert parked(desk) == (100, 0, 50, 0)
    assert desk.unconfirmed_since() is None
    # It keeps up, parked, and nothing is read any more.
    desk.container.use(2)
    desk.advance()
    desk.later(days=1)
    assert (desk.confirm().requests, parked(desk)) == (0, (100, 0, 52, 0))
    desk.link("acme", another)
    desk.advance()
    desk.later(minutes=15)
    assert desk.confirm().confirmed == 1
    assert (desk.figure(), desk.figure(LAST_HOUR - HOUR)) == (52, None)
    assert parked(desk) == (152, 0, 0, 0)


def test_a_replacement_that_got_only_late_usage_gets_the_rest_of_the_hour_too(
    desk: Desk, local: LocalStripe, another: str
) -> None:
    desk.container.use(100)
    desk.advance()
    former = desk.refs["acme"]
    desk.link("acme", another)
    desk.container.use(11)
    desk.advance()
    assert desk.figure() == 11
    delete(local, former)
    desk.later(minutes=15)
    done = desk.confirm()
    assert (done.confirmed, done.parked) == (1, 1)
    assert desk.rows()[-1] == (3, "parked", GONE)
    assert parked(desk) == (11, 0, 100, 0)
    desk.advance()
    desk.later(minutes=15)
    desk.confirm()
    assert desk.figure() == 111
    desk.assert_all_confirmed()


def test_usage_of_a_customer_that_nobody_is_linked_to_any_more_stays_in_the_books(
    desk: Desk, local: LocalStripe, another: str
) -> None:
    desk.container.use(100)
    desk.advance()
    delete(local, desk.refs["acme"])
    desk.link("acme", None)
    desk.container.use(11)
    desk.advance()
    desk.later(minutes=15)
    assert desk.confirm().parked == 1
    assert desk.states() == ["parked", "parked"]
    assert parked(desk) == (0, 0, 111, 0)
    desk.link("acme", another)
    desk.advance()
    desk.later(minutes=15)
    desk.confirm()
    desk.assert_all_confirmed()


def test_earlier_figures_of_a_deleted_customer_do_not_pass_for_accepted(
    desk: Desk, local: LocalStripe, another: str
) -> None:
    desk.container.use(100)
    desk.advance()
    desk.container.use(11)
    desk.advance()
    delete(local, desk.refs["acme"])
    desk.later(minutes=15)
    assert desk.confirm().parked == 1
    assert parked(desk) == (0, 0, 111, 0)
    desk.link("acme", another)
    desk.advance()
    desk.later(minutes=15)
    desk.confirm()
    desk.assert_all_confirmed()


def test_a_deleted_customers_figure_whose_rest_was_carried_on_goes_to_its_replacement(
    desk: Desk, local: LocalStripe, another: str
) -> None:
    plain = desk.container.metered
    desk.container.metered = lambda sku: replace(plain(sku), decimals=2)
    desk.container.use(1_230_000)
    desk.advance()
    desk.container.use(4_000)
    desk.advance()
    delete(local, desk.refs["acme"])
    desk.later(minutes=15)
    assert desk.confirm().parked == 1
    assert desk.rows()[-1] == (3, "parked", GONE)
    assert desk.container.sums()["acme", "page-capture"].parked == 1_230_000
    desk.link("acme", another)
    desk.advance()
    desk.later(minutes=15)
    desk.confirm()
    assert (desk.figure(), desk.unconfirmed_since()) == (123, None)


def test_both_a_customer_and_its_replacement_keep_what_they_were_told(
    desk: Desk, local: LocalStripe, another: str
) -> None:
    desk.container.use(100)
    desk.advance()
    former = desk.refs["acme"]
    desk.edit(70)
    desk.link("acme", another)
    desk.container.use(11)
    desk.advance()
    for _ in range(4):
        desk.later(minutes=30)
        desk.confirm()
        desk.advance()
    assert desk.figure() == 11
    day = LAST_HOUR.date()
    meter = desk.container.metered("page-capture").meter.name
    assert desk.provider.inner.read_back(former, meter, day) == {LAST_HOUR: 100}
    assert parked(desk) == (111, 0, 0, 0)
    assert desk.unconfirmed_since() is None
    assert local.count("customers") == 3


def test_a_doubtful_figure_of_a_deleted_customer_is_free_for_its_replacement(
    desk: Desk, local: LocalStripe, another: str
) -> None:
    desk.container.use(100)
    local.control.fault("timeout", path="/v1/billing/meter_events", effect=False)
    desk.advance()
    [(_, _, number)] = desk.rows("revision, state, id")
    assert desk.container.reports.hold_back(number, "who is this?")
    delete(local, desk.refs["acme"])
    desk.later(minutes=15)
    assert desk.confirm().parked == 1
    assert desk.rows("state, cause, doubtful") == [("parked", GONE, False)]
    desk.link("acme", another)
    desk.advance()
    desk.later(minutes=15)
    desk.confirm()
    desk.assert_all_confirmed()


# ---- meters that are not there ----


def test_a_meter_that_is_not_there_is_said_and_what_it_was_told_is_parked(
    desk: Desk, local: LocalStripe
) -> None:
    desk.container.use(100)
    desk.advance()
    # Another account, in which there is no such meter.
    desk.provider.inner = local.adapter()
    local.control.post("reset")
    desk.later(minutes=15)
    done = desk.confirm()
    assert (done.parked, done.unanswered) == (1, 0)
    assert desk.rows() == [(1, "parked", ProviderCause.METER_MISSING.value)]
    assert parked(desk) == (0, 0, 100, 0)


# ---- Stripe does not answer ----


@pytest.mark.parametrize("kind", ["timeout", "server_error", "rate_limit"])
def test_an_outage_delays_and_loses_nothing(desk: Desk, local: LocalStripe, kind: str) -> None:
    desk.container.use(100)
    desk.container.use(7, customer="globex")
    desk.advance()
    desk.later(minutes=15)
    local.control.fault(kind, path=SUMMARIES, times=2)
    done = desk.confirm()
    assert (done.requests, done.unanswered, done.confirmed) == (2, 2, 0)
    assert set(desk.states()) == {"accepted"}
    assert desk.confirm().requests == 0
    desk.later(minutes=5)
    assert desk.confirm().confirmed == 2
    desk.assert_all_confirmed()


@pytest.mark.parametrize("kind", ["unauthorized", "forbidden"])
def test_a_key_that_is_refused_stops_the_run_and_says_why(
    desk: Desk, local: LocalStripe, kind: str
) -> None:
    desk.container.use(100)
    desk.container.use(7, customer="globex")
    desk.advance()
    desk.later(minutes=15)
    local.control.fault(kind, path=SUMMARIES)
    done = desk.confirm()
    assert (done.requests, done.confirmed) == (1, 0)
    assert "refused" in done.stopped
    assert desk.confirm().confirmed == 2


def test_somebody_elses_fraction_leaves_the_day_unconfirmed_and_its_age_tells(
    desk: Desk, local: LocalStripe
) -> None:
    desk.container.use(100)
    desk.advance()
    payload = {"stripe_customer_id": desk.refs["acme"], "value": "0.5"}
    meter = desk.container.metered("page-capture").meter.name
    local.person.billing.meter_events.create(
        {"event_name": meter, "payload": payload, "timestamp": int(LAST_HOUR.timestamp())}
    )
    desk.later(hours=2)
    done = desk.confirm()
    assert (done.unanswered, done.stopped, desk.states()) == (1, "", ["accepted"])
    desk.edit(100)
    desk.later(hours=6)
    assert desk.confirm().confirmed == 1


def test_a_request_asks_for_one_day_by_the_hour(desk: Desk, local: LocalStripe) -> None:
    for back in range(10):
        desk.container.use(1, LAST_HOUR - back * HOUR)
    desk.advance()
    desk.later(minutes=15)
    before = len(local.requests())
    desk.confirm()
    [asked] = local.requests()[before:]
    assert asked["params"]["value_grouping_window"] == "hour"
    assert int(asked["params"]["end_time"]) - int(asked["params"]["start_time"]) == 86_400
