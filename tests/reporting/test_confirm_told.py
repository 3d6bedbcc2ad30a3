"""What a provider told of by itself is read back soon; what it rejected is parked."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa
from confirm_support import Desk
from reporting_support import LAST_HOUR, Container, metered
from support import NOW

from billing.providers.port import ProviderCause
from billing.reporting.confirmations import MARGIN
from billing.reporting.destination import CustomerIds


@pytest.fixture
def desk(container: Container) -> Desk:
    """A log, an outbox and the ledger."""
    return Desk(container, container.ledger.inner, CustomerIds.OURS)


def reported(desk: Desk) -> list[str]:
    """An hour of three days, told to the ledger and not read back for a while: identifiers."""
    for back in range(3):
        desk.container.use(100 + back, LAST_HOUR - back * timedelta(days=1))
        desk.advance()
        desk.later(minutes=20)
    with desk.engine.begin() as anyone:
        later = desk.container.clock.now() + timedelta(days=1)
        anyone.execute(sa.text("UPDATE usage_reports SET confirm_at = :at"), {"at": later})
    return [identifier for (identifier,) in desk.rows("identifier")]


@pytest.mark.parametrize(
    ("start", "end", "found"),
    [
        (timedelta(0), timedelta(0), 1),
        (timedelta(minutes=6), timedelta(minutes=14), 0),
        (timedelta(minutes=5), timedelta(minutes=6), 1),
        (timedelta(minutes=-9), timedelta(minutes=-5), 1),
        (timedelta(minutes=-9), timedelta(minutes=-6), 0),
        (timedelta(0), timedelta(minutes=20), 2),
        (timedelta(0), timedelta(hours=1), 3),
    ],
    ids=str,
)
def test_what_was_sent_around_a_window_is_read_back_at_once(
    desk: Desk, start: timedelta, end: timedelta, found: int
) -> None:
    reported(desk)
    now = desk.container.clock.now()
    meter = metered("page-capture").meter.name
    window = (NOW + start, NOW + end)
    assert desk.confirmations.recheck("ledger", "wb.other", *window, now=now) == 0
    assert desk.confirmations.recheck("file", meter, *window, now=now) == 0
    assert desk.confirmations.recheck("ledger", meter, *window, now=now) == found
    assert desk.confirmations.recheck("ledger", None, *window, now=now) == found
    assert desk.confirm().confirmed == found
    assert timedelta(minutes=5) == MARGIN


def test_a_rejected_report_is_parked_and_the_figure_before_it_is_read_again(desk: Desk) -> None:
    desk.container.use(100)
    desk.advance()
    desk.later(minutes=5)
    desk.container.use(11)
    desk.advance()
    identifiers = [identifier for (identifier,) in desk.rows("identifier")]
    desk.later(minutes=11)
    assert desk.confirm().requests == 0  # the first one is forgotten, the second one not due
    desk.edit(100)  # the second one was dropped
    now = desk.container.clock.now()
    found = desk.confirmations.recheck_identifiers(
        identifiers[1:], ProviderCause.INVALID_VALUE, now=now, detail="meter_event_invalid_value"
    )
    assert found == 1
    assert desk.rows("state, cause, detail")[1] == (
        "parked", "invalid_value", "meter_event_invalid_value",
    )  # fmt: skip
    sums = desk.container.sums()["acme", "page-capture"]
    assert (sums.accepted, sums.parked) == (100, 11)
    assert desk.confirm().confirmed == 1
    assert desk.states() == ["confirmed", "parked"]


def test_a_report_is_not_parked_that_is_confirmed_superseded_or_unknown(desk: Desk) -> None:
    identifiers = reported(desk)
    now = desk.container.clock.now()
    park = desk.confirmations.recheck_identifiers
    assert park(["another:installation:r1"], ProviderCause.CUSTOMER_MISSING, now=now) == 0
    desk.confirmations.recheck("ledger", None, NOW, NOW, now=now)
    desk.confirm()
    assert park(identifiers[:1], ProviderCause.CUSTOMER_MISSING, now=now) == 0
    desk.container.use(5, LAST_HOUR - timedelta(days=1))
    desk.advance()
    assert park(identifiers[1:2], ProviderCause.CUSTOMER_MISSING, now=now) == 0
    assert park(identifiers, ProviderCause.CUSTOMER_MISSING, now=now) == 1
    assert desk.states() == ["confirmed", "accepted", "parked", "accepted"]


def test_a_webhooks_transaction_has_all_of_it_or_nothing(desk: Desk) -> None:
    identifiers = reported(desk)
    now = desk.container.clock.now()
    with desk.engine.connect() as connection:
        desk.confirmations.recheck("ledger", None, NOW, now, now=now, connection=connection)
        desk.confirmations.recheck_identifiers(
            identifiers, ProviderCause.CUSTOMER_MISSING, now=now, connection=connection
        )
        connection.rollback()
    assert set(desk.states()) == {"accepted"}
    assert desk.confirm().requests == 0
