"""Accepted figures are read back, whichever provider has them: confirmed, sent again, or parked."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa
from confirm_support import Desk, at_stripe
from reporting_support import LAST_HOUR, Container
from support import NOW

from billing.providers.port import ProviderCause, ProviderUnavailable
from billing.reporting.confirmation_rules import MAX_RESENT
from billing.reporting.destination import CustomerIds

HOUR = timedelta(hours=1)
MIDNIGHT = NOW.replace(hour=0, minute=0)


@pytest.fixture(params=["ledger", "file", "stripe"])
def desk(request: pytest.FixtureRequest, container: Container) -> Desk:
    """A log, an outbox and each provider."""
    if request.param == "stripe":
        return at_stripe(container, request.getfixturevalue("local"))
    inner = getattr(container, request.param).inner
    return Desk(container, inner, CustomerIds.OURS)


@pytest.fixture
def ledger(container: Container) -> Desk:
    """A log, an outbox and the ledger."""
    return Desk(container, container.ledger.inner, CustomerIds.OURS)


def test_what_was_accepted_is_confirmed_a_quarter_of_an_hour_later(desk: Desk) -> None:
    desk.container.use(1_234_567)
    desk.container.use(3, customer="globex", sku="premium-proxy-search")
    desk.advance()
    assert (desk.confirm().confirmed, desk.provider.reads) == (0, [])
    desk.later(minutes=15)
    done = desk.confirm()
    assert (done.requests, done.confirmed, done.waiting) == (2, 2, 0)
    desk.assert_all_confirmed()
    desk.later(days=2)
    assert desk.confirm().requests == 0


def test_one_request_confirms_a_day_of_a_customer_and_meter(desk: Desk) -> None:
    for back in range(1, 25):
        desk.container.use(back, MIDNIGHT - back * HOUR)
    desk.container.use(99, MIDNIGHT)
    desk.advance()
    desk.later(minutes=15)
    done = desk.confirm()
    assert (done.requests, done.confirmed) == (2, 25)
    yesterday = (MIDNIGHT - HOUR).date()
    assert sorted(day for _, _, day in desk.provider.reads) == [yesterday, MIDNIGHT.date()]
    desk.assert_all_confirmed()


def test_a_figure_somebody_changed_is_sent_again_and_confirmed(desk: Desk) -> None:
    desk.container.use(100)
    desk.container.use(5, LAST_HOUR - HOUR)
    desk.advance()
    desk.edit(70)
    desk.later(minutes=15)
    done = desk.confirm()
    assert (done.confirmed, done.waiting, done.resent) == (1, 1, 0)
    desk.later(minutes=45)
    assert desk.confirm().resent == 1
    # Until it is sent again nobody says that it is there.
    sums = desk.container.sums()["acme", "page-capture"]
    assert (sums.accepted, sums.open, sums.unclaimed) == (5, 100, 0)
    first, again = desk.rows("revision, value, held_microcredits, total_microcredits, identifier,"
                             " event_at, resent, state")[1:]  # fmt: skip
    assert again[:1] + again[1:4] == (2, *first[1:4])
    assert again[4] != first[4]
    assert again[4].endswith(":r2")
    assert again[5:] == (first[5], 1, "pending")
    desk.advance()
    assert desk.figure() == 100
    desk.later(minutes=15)
    assert desk.confirm().confirmed == 1
    desk.assert_all_confirmed()


def test_a_figure_that_is_changed_every_time_is_parked_for_a_person(desk: Desk) -> None:
    desk.container.use(100)
    for _ in range(MAX_RESENT + 1):
        desk.advance()
        desk.edit(70)
        desk.later(hours=1)
        done = desk.confirm()
    assert (done.resent, done.parked) == (0, 1)
    assert len(desk.rows()) == MAX_RESENT + 1
    assert desk.rows("detail")[-1] == ("reported 100, read back 70",)
    # Nothing follows, also not for late usage, until somebody has looked; it counts as parked.
    desk.container.use(11)
    desk.later(hours=1)
    desk.advance()
    assert desk.rows()[-1] == (MAX_RESENT + 1, "parked", "differs")
    sums = desk.container.sums()["acme", "page-capture"]
    assert (sums.accepted, sums.parked, sums.unclaimed) == (0, 100, 11)
    # Who mends it there need do nothing here.
    desk.edit(100)
    desk.later(hours=6)
    assert desk.confirm().confirmed == 1
    desk.advance()
    desk.later(minutes=15)
    desk.confirm()
    desk.assert_all_confirmed()


def test_a_person_has_a_parked_figure_told_anew(desk: Desk) -> None:
    desk.container.use(100)
    for _ in range(MAX_RESENT + 1):
        desk.advance()
        desk.edit(70)
        desk.later(hours=1)
        desk.confirm()
    desk.container.use(11)
    [number] = desk.rows("id")[-1]
    now = desk.container.clock.now()
    assert desk.container.reports.lift_hold(number, arrived=False, now=now)
    desk.advance()
    assert desk.rows("revision, state, value, resent")[-1] == (MAX_RESENT + 2, "accepted", 111, 0)
    desk.later(minutes=15)
    assert desk.confirm().confirmed == 1
    desk.assert_all_confirmed()


def test_late_usage_is_confirmed_with_its_hour_and_the_former_figure_is_forgotten(
    desk: Desk,
) -> None:
    desk.container.use(100)
    desk.advance()
    desk.later(minutes=5)
    desk.container.use(11)
    desk.advance()
    desk.later(minutes=12)
    assert desk.confirm().requests == 0
    desk.later(minutes=3)
    assert desk.confirm().confirmed == 1
    assert desk.states() == ["accepted", "confirmed"]
    desk.assert_all_confirmed()


def test_an_hour_waits_while_a_revision_of_it_is_open(desk: Desk) -> None:
    desk.container.use(100)
    desk.advance()
    desk.container.use(11)
    desk.container.reports.plan(desk.destination(), until=NOW, now=NOW)
    desk.later(hours=2)
    assert (desk.confirm().requests, desk.states()) == (0, ["accepted", "pending"])
    desk.advance()
    desk.later(minutes=15)
    assert desk.confirm().confirmed == 1
    desk.assert_all_confirmed()


def test_a_zero_that_overwrote_a_figure_is_confirmed(desk: Desk) -> None:
    desk.container.use(100)
    desk.advance()
    with desk.engine.begin() as anyone:
        anyone.execute(sa.text("UPDATE usage_hourly SET amount_microcredits = 0"))
    desk.advance()
    assert desk.figure() == 0
    desk.later(minutes=15)
    assert desk.confirm().confirmed == 1


# ---- no answer ----


def test_a_provider_that_does_not_answer_changes_nothing_but_the_age(desk: Desk) -> None:
    desk.container.use(100)
    desk.advance()
    desk.provider.silence = ProviderUnavailable("down")
    asked = 0
    for _ in range(48):
        desk.later(hours=1)
        done = desk.confirm()
        asked += done.requests
        assert (done.confirmed, done.resent, done.parked) == (0, 0, 0)
        assert desk.unconfirmed_since() == NOW
    # Growing waits: not each of the 48 runs asked.
    assert 8 <= asked <= 16
    assert desk.rows("state, readings") == [("accepted", 0)]
    desk.provider.silence = None
    desk.later(hours=6)
    assert desk.confirm().confirmed == 1
    desk.assert_all_confirmed()


def test_a_run_ends_after_three_silences_in_a_row_and_says_so(ledger: Desk) -> None:
    for back in range(6):
        ledger.container.use(1, LAST_HOUR - back * timedelta(days=1))
    ledger.advance()
    ledger.later(minutes=15)
    ledger.provider.silence = ProviderUnavailable("down")
    done = ledger.confirm()
    assert (done.requests, done.unanswered) == (3, 3)
    assert done.stopped == "no answer to 3 requests in a row"
    # The next run begins with those that were not asked for yet.
    ledger.confirm()
    assert len(set(ledger.provider.reads)) == 6
    ledger.provider.silence = None
    ledger.later(minutes=30)
    assert ledger.confirm().confirmed == 6


def refused(cause: ProviderCause) -> ProviderUnavailable:
    error = ProviderUnavailable(f"refused: {cause}")
    error.cause = cause
    return error


@pytest.mark.parametrize("cause", [ProviderCause.KEY_REFUSED, ProviderCause.PERMISSION_REFUSED])
def test_a_provider_that_refuses_us_is_asked_once_and_nothing_is_put_off(
    ledger: Desk, cause: ProviderCause
) -> None:
    ledger.container.use(1)
    ledger.container.use(1, customer="globex")
    ledger.advance()
    ledger.later(minutes=15)
    ledger.provider.silence = refused(cause)
    done = ledger.confirm()
    assert (done.requests, done.stopped) == (1, f"refused: {cause}")
    ledger.provider.silence = None
    assert ledger.confirm().confirmed == 2


def test_an_answer_that_is_of_no_use_holds_nobody_else_up(ledger: Desk) -> None:
    for back in range(6):
        ledger.container.use(1, LAST_HOUR - back * timedelta(days=1))
    ledger.advance()
    ledger.later(minutes=15)
    ledger.provider.silence = refused(ProviderCause.INVALID_VALUE)
    done = ledger.confirm()
    assert (done.requests, done.unanswered, done.stopped) == (6, 6, "")
    assert set(ledger.states()) == {"accepted"}
