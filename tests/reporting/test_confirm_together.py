"""Reading back in pages, by several at once, at former providers, and behind carried rests."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from confirm_support import QUICK, Desk, at_stripe
from reporting_support import LAST_HOUR, Container
from support import NOW

from billing.reporting.confirmation_rules import LAG
from billing.reporting.confirmations import Cursor
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


def test_pages_go_on_where_the_one_before_ended_although_nothing_changed(ledger: Desk) -> None:
    for back in range(7):
        ledger.container.use(1, LAST_HOUR - back * timedelta(days=1))
    ledger.advance()
    ledger.later(minutes=15)
    now = ledger.container.clock.now()
    after: Cursor | None = Cursor()
    found = []
    for _ in range(9):
        if after is None:
            break
        page = ledger.confirmations.due("ledger", now=now, after=after, limit=2)
        found += [group.day for group in page.groups]
        after = page.after
    assert after is None
    assert sorted(found) == [
        (LAST_HOUR - back * timedelta(days=1)).date() for back in range(6, -1, -1)
    ]


def test_small_pages_reach_every_day_once(ledger: Desk) -> None:
    for back in range(40):
        ledger.container.use(1 + back, LAST_HOUR - back * HOUR)
        ledger.container.use(1 + back, LAST_HOUR - back * HOUR, customer="globex")
    ledger.advance()
    ledger.later(minutes=15)
    done = ledger.reader(replace(QUICK, batch=3)).confirm()
    assert done.confirmed == 80
    assert len(ledger.provider.reads) == len(set(ledger.provider.reads)) == done.requests
    ledger.assert_all_confirmed()


def test_a_run_keeps_to_its_limit_and_the_next_goes_on(ledger: Desk) -> None:
    for back in range(5):
        ledger.container.use(1, LAST_HOUR - back * timedelta(days=1))
    ledger.advance()
    ledger.later(minutes=15)
    assert [ledger.confirm(limit=2).requests for _ in range(4)] == [2, 2, 1, 0]
    ledger.assert_all_confirmed()


def test_a_run_begins_no_request_after_its_time_is_up(ledger: Desk) -> None:
    ledger.container.use(1)
    ledger.advance()
    ledger.later(minutes=15)
    assert ledger.confirm(until=ledger.container.clock.now()).requests == 0
    assert ledger.confirm(until=ledger.container.clock.now() + HOUR).confirmed == 1


def test_four_readers_at_once_send_a_changed_figure_again_once(desk: Desk) -> None:
    for back in range(8):
        desk.container.use(100, LAST_HOUR - back * HOUR)
    desk.advance()
    for back in range(4):
        desk.edit(70, LAST_HOUR - back * HOUR)
    desk.later(hours=1)
    gate = threading.Barrier(4)

    def run(_: int) -> Any:
        reader = desk.reader()
        gate.wait(timeout=60)
        return reader.confirm()

    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(run, range(4)))
    assert sum(done.confirmed for done in runs) == 4
    assert sum(done.resent for done in runs) == 4
    assert len(desk.rows()) == 12
    desk.advance()
    desk.later(hours=1)
    desk.confirm()
    desk.assert_all_confirmed()


def test_a_reading_is_dropped_where_the_hour_moved_on_meanwhile(desk: Desk) -> None:
    desk.container.use(100)
    desk.advance()
    desk.later(hours=2)

    def late_usage() -> None:
        desk.provider.meanwhile = None
        desk.container.use(11)
        desk.advance()

    desk.edit(70)
    desk.provider.meanwhile = late_usage
    done = desk.confirm()
    assert (done.requests, done.confirmed, done.resent) == (1, 0, 0)
    assert desk.states() == ["accepted", "accepted"]
    assert desk.figure() == 111
    desk.later(minutes=15)
    assert desk.confirm().confirmed == 1
    desk.assert_all_confirmed()


def test_days_are_those_of_utc_whatever_the_sessions_time_zone(
    ledger: Desk,
) -> None:
    for back in range(-2, 3):
        ledger.container.use(10 + back, MIDNIGHT + back * HOUR)
    ledger.advance()
    ledger.later(minutes=15)
    elsewhere = sa.create_engine(
        ledger.engine.url, connect_args={"options": "-c timezone=Asia/Kathmandu"}
    )
    try:
        done = ledger.reader(engine=elsewhere).confirm()
    finally:
        elsewhere.dispose()
    assert (done.requests, done.confirmed) == (2, 5)
    ledger.assert_all_confirmed()


def test_after_figures_agreed_the_first_reading_of_the_next_ones_waits(ledger: Desk) -> None:
    spaced = replace(QUICK, spacing=timedelta(hours=6))
    requests = []
    for hour in range(24):
        ledger.container.use(1, LAST_HOUR + hour * HOUR)
        ledger.advance()
        ledger.later(minutes=20)
        requests.append(ledger.reader(spaced).confirm().requests)
        ledger.later(minutes=40)
    assert sum(requests) <= 6
    assert requests[0] == 1
    ledger.later(hours=6)
    ledger.reader(spaced).confirm()
    ledger.assert_all_confirmed()


def test_figures_at_a_former_provider_are_read_back_there(container: Container) -> None:
    before = Desk(container, container.file.inner, CustomerIds.OURS)
    container.use(100)
    before.advance()
    after = Desk(container, container.ledger.inner, CustomerIds.OURS)
    container.use(11)
    after.advance()
    assert after.confirmations.providers() == ["file", "ledger"]
    container.later(minutes=15)
    assert (after.confirm().confirmed, before.confirm().confirmed) == (1, 1)
    assert after.confirmations.providers() == []
    container.assert_all_told(container.file, container.ledger)


def test_an_earlier_figure_at_a_former_provider_that_differs_is_read_until_somebody_looks(
    container: Container,
) -> None:
    before = Desk(container, container.file.inner, CustomerIds.OURS)
    container.use(100)
    before.advance()
    before.edit(70)
    after = Desk(container, container.ledger.inner, CustomerIds.OURS)
    container.use(11)
    after.advance()
    for _ in range(10):
        container.later(hours=6)
        done = before.confirm()
        assert (done.confirmed, done.resent, done.parked) == (0, 0, 0)
    assert before.unconfirmed_since() == NOW
    before.edit(100)
    container.later(days=1)
    assert before.confirm().confirmed == 1


def coarse(desk: Desk) -> None:
    """Meters that count hundredths of a credit."""
    plain = desk.container.metered
    desk.container.metered = lambda sku: replace(plain(sku), decimals=2)


def test_a_figure_whose_rest_was_carried_on_is_sent_again_where_it_differs(ledger: Desk) -> None:
    coarse(ledger)
    ledger.container.use(1_230_000)
    ledger.advance()
    ledger.container.use(4_000)
    ledger.advance()
    assert ledger.rows() == [(1, "accepted", "taken"), (2, "parked", "carried")]
    ledger.edit(70)
    ledger.later(hours=1)
    assert ledger.confirm().resent == 1
    assert ledger.rows("state, value, held_microcredits, total_microcredits")[-1] == (
        "pending", 123, 1_230_000, 1_230_000,
    )  # fmt: skip
    ledger.advance()
    ledger.later(minutes=15)
    assert (ledger.confirm().confirmed, ledger.figure()) == (1, 123)
    assert ledger.unconfirmed_since() is None
    sums = ledger.container.sums()["acme", "page-capture"]
    assert (sums.accepted, sums.open) == (1_230_000, 0)


def test_a_figure_whose_rest_was_carried_on_is_parked_where_it_cannot_be_sent_again(
    ledger: Desk,
) -> None:
    coarse(ledger)
    ledger.container.use(1_230_000)
    ledger.advance()
    ledger.container.use(4_000)
    ledger.advance()
    with ledger.engine.begin() as anyone:
        anyone.execute(sa.text("UPDATE usage_reports SET resent = 3 WHERE revision = 1"))
    ledger.edit(70)
    ledger.later(hours=1)
    assert ledger.confirm().parked == 1
    assert ledger.rows("revision, state, cause, doubtful")[-1] == (3, "parked", "differs", True)
    sums = ledger.container.sums()["acme", "page-capture"]
    assert (sums.accepted, sums.parked) == (0, 1_230_000)
    ledger.edit(123)
    ledger.later(days=1)
    assert ledger.confirm().confirmed == 1
    assert ledger.container.sums()["acme", "page-capture"].accepted == 1_230_000


def test_the_lag_is_counted_from_the_answer_and_not_from_the_hour(ledger: Desk) -> None:
    ledger.container.use(100, LAST_HOUR - timedelta(days=3))
    ledger.advance()
    ledger.edit(70, LAST_HOUR - timedelta(days=3))
    ledger.later(minutes=15)
    assert ledger.confirm().waiting == 1
    ledger.container.clock.advance(LAG)
    assert ledger.confirm().resent == 1


def test_a_clock_that_went_back_reads_nothing_early(ledger: Desk) -> None:
    ledger.container.use(100)
    ledger.advance()
    ledger.container.clock.advance(-HOUR)
    assert ledger.confirm().requests == 0
