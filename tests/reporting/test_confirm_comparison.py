"""Log, accepted figures and the provider's, day by day, read live."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from confirm_support import QUICK, Desk, at_stripe
from reporting_support import LAST_HOUR, SKUS, Container
from stripe_bench import LocalStripe, delete
from support import NOW

from billing.core.periods import Period, month_of
from billing.providers.port import ProviderCause, ProviderUnavailable
from billing.reporting.comparison import NO_METER, NOT_LINKED, ProviderComparison, ProviderDay
from billing.reporting.destination import CustomerIds

HOUR = timedelta(hours=1)
DAY = LAST_HOUR.date()
MONTH = month_of(NOW)


@pytest.fixture(params=["ledger", "file", "stripe"])
def desk(request: pytest.FixtureRequest, container: Container) -> Desk:
    """A log, an outbox and each provider."""
    if request.param == "stripe":
        return at_stripe(container, request.getfixturevalue("local"))
    return Desk(container, getattr(container, request.param).inner, CustomerIds.OURS)


def rows(desk: Desk, period: Period = MONTH) -> list[ProviderDay]:
    return list(desk.comparison().compare(period))


def figures(row: ProviderDay) -> tuple[Any, ...]:
    """Logged, accepted (twice), read, the hours that differ."""
    hours = [(each.accepted, each.read) for each in row.hours]
    return row.logged_microcredits, row.accepted_microcredits, row.accepted, row.read, hours


def test_every_day_with_usage_is_one_row_and_agrees(desk: Desk) -> None:
    desk.container.use(100)
    desk.container.use(11, LAST_HOUR - HOUR)
    desk.container.use(7, LAST_HOUR - timedelta(days=2))
    desk.container.use(3, customer="globex", sku=SKUS[1])
    desk.advance()
    found = {(row.customer, row.sku, row.day): row for row in rows(desk)}
    assert {key: figures(row) for key, row in found.items()} == {
        ("acme", SKUS[0], DAY): (111, 111, 111, 111, []),
        ("acme", SKUS[0], DAY - timedelta(days=2)): (7, 7, 7, 7, []),
        ("globex", SKUS[1], DAY): (3, 3, 3, 3, []),
    }
    assert len(desk.provider.reads) == 3
    assert not any(row.differs or row.problem or row.settling for row in found.values())
    assert desk.states() == ["accepted"] * 4


def test_what_somebody_changed_is_a_difference_once_it_does_not_settle_by_itself(
    desk: Desk,
) -> None:
    desk.container.use(100)
    desk.advance()
    desk.edit(70)
    [row] = rows(desk)
    assert (figures(row), row.difference) == ((100, 100, 100, 70, [(100, 70)]), -30)
    assert (row.settling, row.differs) == (True, False)
    desk.later(hours=1)
    [row] = rows(desk)
    assert (row.settling, row.differs) == (False, True)


def test_two_changes_that_cancel_out_are_two_differences(desk: Desk) -> None:
    desk.container.use(100)
    desk.container.use(50, LAST_HOUR - HOUR)
    desk.advance()
    desk.edit(70)
    desk.edit(80, LAST_HOUR - HOUR)
    desk.edit(5, LAST_HOUR - 2 * HOUR)
    desk.edit(0, LAST_HOUR - 3 * HOUR)
    desk.later(hours=1)
    [row] = rows(desk)
    assert figures(row)[2:] == (150, 155, [(None, 5), (50, 80), (100, 70)])
    assert row.differs


def test_usage_that_nothing_was_reported_of_is_unreported_and_no_difference(desk: Desk) -> None:
    desk.container.use(100)
    [row] = rows(desk)
    assert (figures(row), row.unreported_microcredits) == ((100, 0, 0, 0, []), 100)
    assert not row.differs
    desk.edit(9)
    [row] = rows(desk)
    assert (row.differs, row.difference) == (True, 9)


def test_carry_lines_count_in_the_hour_they_are_reported_in(desk: Desk) -> None:
    desk.container.use(100)
    desk.container.use(40, LAST_HOUR - timedelta(days=3))
    with desk.engine.begin() as anyone:
        anyone.execute(
            sa.text(
                "INSERT INTO report_carries (customer_id, sku_id, from_hour, to_hour,"
                " amount_microcredits, reason, created_at)"
                " VALUES ('acme', :sku, :before, :after, 40, 'late', :after)"
            ),
            {"sku": SKUS[0], "before": LAST_HOUR - timedelta(days=3), "after": LAST_HOUR},
        )
    [row] = rows(desk)
    assert (row.day, row.logged_microcredits) == (DAY, 140)


def test_only_hours_of_the_period_are_compared(desk: Desk) -> None:
    for back in range(3):
        desk.container.use(10**back, LAST_HOUR - back * HOUR)
    desk.advance()
    desk.edit(5, LAST_HOUR)
    desk.later(hours=1)
    part = Period("part", LAST_HOUR - 2 * HOUR, LAST_HOUR)
    [row] = rows(desk, part)
    assert figures(row) == (110, 110, 110, 110, [])
    assert list(desk.comparison().compare(part, customer="globex")) == []


def test_a_request_is_made_only_when_its_row_is_asked_for(desk: Desk) -> None:
    for back in range(3):
        desk.container.use(1, LAST_HOUR - back * timedelta(days=1))
    found = desk.comparison().compare(MONTH)
    assert isinstance(found, Iterator)
    next(found)
    assert len(desk.provider.reads) == 1


def test_a_day_without_an_answer_says_why_and_the_others_are_compared(desk: Desk) -> None:
    for back in range(4):
        desk.container.use(1, LAST_HOUR - back * timedelta(days=1))
    desk.advance()
    found = []
    for row in desk.comparison().compare(MONTH):
        found.append(row)
        desk.provider.silence = ProviderUnavailable("down") if len(found) == 1 else None
    assert [(row.read, row.problem) for row in found] == [(1, ""), (None, "down"), (1, ""), (1, "")]
    assert [row.differs for row in found] == [False] * 4


def test_a_provider_that_is_down_or_refuses_us_ends_the_comparison(desk: Desk) -> None:
    for back in range(9):
        desk.container.use(1, LAST_HOUR - back * timedelta(days=1))
    desk.advance()
    desk.provider.silence = ProviderUnavailable("down")
    with pytest.raises(ProviderUnavailable, match="down"):
        rows(desk)
    assert len(desk.provider.reads) == 3
    desk.provider.silence.cause = ProviderCause.KEY_REFUSED
    with pytest.raises(ProviderUnavailable):
        rows(desk)
    assert len(desk.provider.reads) == 4


# ---- customers that are others at the provider, or nobody ----


@pytest.fixture
def stripe(container: Container, local: LocalStripe) -> Desk:
    """A log, an outbox and a local Stripe."""
    return at_stripe(container, local)


def test_a_customer_that_nobody_is_linked_to_is_told_and_not_asked_for(stripe: Desk) -> None:
    stripe.link("acme", None)
    stripe.container.use(100)
    [row] = rows(stripe)
    assert (row.read, row.problem, row.unreported_microcredits) == (None, NOT_LINKED, 100)
    assert stripe.provider.reads == []


def test_a_deleted_customer_is_a_problem_and_not_zero(stripe: Desk, local: LocalStripe) -> None:
    stripe.container.use(100)
    stripe.advance()
    delete(local, stripe.refs["acme"])
    [row] = rows(stripe)
    assert (row.read, row.difference, row.differs) == (None, 0, False)
    assert "deleted" in row.problem


def test_each_place_that_has_a_part_of_a_day_is_a_row_with_its_part(
    stripe: Desk, local: LocalStripe
) -> None:
    stripe.container.use(100)
    stripe.advance()
    before = stripe.refs["acme"]
    stripe.link("acme", local.person.customers.create({"name": "Acme, again"}).id)
    stripe.container.use(11)
    stripe.advance()
    found = {row.customer_ref: figures(row) for row in rows(stripe)}
    assert found == {
        before: (100, 100, 100, 100, []),
        stripe.refs["acme"]: (11, 11, 11, 11, []),
    }
    # What is not reported yet is on its way to who is linked now.
    stripe.container.use(5)
    unreported = {row.customer_ref: row.unreported_microcredits for row in rows(stripe)}
    assert unreported == {before: 0, stripe.refs["acme"]: 5}


def test_what_another_provider_has_is_not_missing_here(container: Container) -> None:
    file = Desk(container, container.file.inner, CustomerIds.OURS)
    container.use(100)
    file.advance()
    ledger = Desk(container, container.ledger.inner, CustomerIds.OURS)
    container.use(11)
    ledger.advance()
    assert [figures(row) for row in rows(file)] == [(100, 100, 100, 100, [])]
    assert [figures(row) for row in rows(ledger)] == [(11, 11, 11, 11, [])]


def test_a_coarser_meter_is_compared_in_its_own_unit(container: Container) -> None:
    plain = container.metered
    container.metered = lambda sku: replace(plain(sku), decimals=2)
    desk = Desk(container, container.ledger.inner, CustomerIds.OURS)
    container.use(1_239_999)
    desk.advance()
    [row] = rows(desk)
    assert figures(row) == (1_239_999, 1_230_000, 123, 123, [])


def test_a_sku_without_a_meter_yet_is_no_error(container: Container) -> None:
    desk = Desk(container, container.ledger.inner, CustomerIds.OURS)
    container.use(100)

    def unknown(sku: str) -> Any:
        raise LookupError(sku)

    compared = ProviderComparison(
        container.engine, desk.provider,  # type: ignore[arg-type]  # the rest is the inner one's
        replace(desk.destination(), metered=unknown), container.clock, pace=QUICK,
    )  # fmt: skip
    [row] = compared.compare(MONTH)
    assert (row.read, row.meter, row.problem) == (None, "", NO_METER)
