"""Reading back what is doubtful, what is added up, what is final; and dying while at it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from confirm_support import Desk
from reporting_support import LAST_HOUR, Container, answer_lost, answering, metered

from billing.providers.port import (
    Provider,
    ProviderAnswer,
    ProviderCause,
    ProviderUnavailable,
    UsageReport,
)
from billing.reporting.destination import CustomerIds

HOUR = timedelta(hours=1)
NEVER_ARRIVED = answering(ProviderCause.TIMED_OUT)


@pytest.fixture
def desk(container: Container) -> Desk:
    """A log, an outbox and the ledger."""
    return Desk(container, container.ledger.inner, CustomerIds.OURS)


def refused_after(desk: Desk, first: Callable[[Provider, UsageReport], ProviderAnswer]) -> None:
    """A figure whose first attempt had no answer and whose second one was refused."""
    desk.container.ledger.faults.extend([first, answering(ProviderCause.TOO_OLD)])
    desk.advance(desk.container.ledger)
    desk.later(minutes=10)
    desk.advance(desk.container.ledger)
    assert desk.rows("state, cause, doubtful")[-1] == ("parked", "too_old", True)


# ---- doubtful ----


def test_a_refused_figure_that_had_arrived_before_is_confirmed(desk: Desk) -> None:
    desk.container.use(100)
    refused_after(desk, answer_lost)
    desk.later(minutes=15)
    assert desk.confirm().confirmed == 1
    assert desk.rows("state, cause, doubtful") == [("confirmed", "taken", False)]
    desk.assert_all_confirmed()


def test_a_refused_figure_that_never_arrived_is_known_to_be_so_after_two_readings(
    desk: Desk,
) -> None:
    desk.container.use(100)
    refused_after(desk, NEVER_ARRIVED)
    desk.later(minutes=15)
    assert (desk.confirm().waiting, desk.confirm().requests) == (1, 0)
    desk.later(minutes=45)
    assert desk.confirm().cleared == 1
    assert desk.rows("state, cause, doubtful") == [("parked", "too_old", False)]
    assert desk.container.sums()["acme", "page-capture"].parked == 100
    desk.later(days=3)
    assert desk.confirm().requests == 0


def test_what_shows_neither_the_one_nor_the_other_stays_doubtful(desk: Desk) -> None:
    desk.container.use(100)
    refused_after(desk, NEVER_ARRIVED)
    desk.edit(70)
    for _ in range(20):
        desk.later(hours=6)
        done = desk.confirm()
        assert (done.confirmed, done.cleared) == (0, 0)
    assert desk.rows("state, doubtful") == [("parked", True)]


def test_a_doubtful_late_figure_is_told_from_the_one_before(desk: Desk) -> None:
    desk.container.use(100)
    desk.advance()
    desk.container.use(11)
    refused_after(desk, NEVER_ARRIVED)
    desk.later(minutes=15)
    assert desk.confirm().confirmed == 1
    desk.later(minutes=45)
    assert desk.confirm().cleared == 1
    assert desk.states() == ["confirmed", "parked"]
    sums = desk.container.sums()["acme", "page-capture"]
    assert (sums.accepted, sums.parked) == (100, 11)


def test_what_a_person_held_back_without_an_answer_is_read_back_too(desk: Desk) -> None:
    desk.container.use(100)
    desk.container.ledger.faults.append(answer_lost)
    desk.advance(desk.container.ledger)
    [(number,)] = desk.rows("id")
    assert desk.container.reports.hold_back(number, "disputed")
    desk.later(minutes=15)
    assert desk.confirm().confirmed == 1
    desk.assert_all_confirmed()


def gone(cause: ProviderCause) -> ProviderUnavailable:
    error = ProviderUnavailable(f"gone: {cause}")
    error.cause = cause
    return error


# ---- periods whose invoice is final ----


def seal(desk: Desk, until: datetime) -> None:
    values = {
        "provider": "ledger", "customer": "acme", "meter": metered("page-capture").meter.name,
        "start": until - timedelta(days=30), "end": until, "now": desk.container.clock.now(),
    }  # fmt: skip
    with desk.engine.begin() as anyone:
        anyone.execute(
            sa.text(
                "INSERT INTO report_seals (provider, customer_id, customer_ref, meter,"
                " period_start, period_end, invoice_ref, billed_value, noticed_at)"
                " VALUES (:provider, :customer, 'acme', :meter, :start, :end, 'in_1', 0, :now)"
            ),
            values,
        )


@pytest.mark.parametrize("silence", [None, gone(ProviderCause.CUSTOMER_MISSING)])
def test_what_differs_after_the_invoice_is_left_to_what_was_billed(
    desk: Desk, silence: Any
) -> None:
    desk.container.use(100)
    desk.container.use(5, LAST_HOUR - HOUR)
    desk.advance()
    desk.edit(70)
    seal(desk, LAST_HOUR + HOUR)
    desk.later(hours=1)
    desk.provider.silence = silence
    done = desk.confirm()
    assert (done.confirmed + done.closed, done.resent, done.parked) == (2, 0, 0)
    assert desk.unconfirmed_since() is None
    desk.later(days=1)
    assert desk.confirm().requests == 0


def test_an_hour_that_reaches_over_the_periods_end_is_still_sent_again(desk: Desk) -> None:
    desk.container.use(100)
    desk.advance()
    desk.edit(70)
    seal(desk, LAST_HOUR + timedelta(minutes=59))
    desk.later(hours=1)
    assert desk.confirm().resent == 1


# ---- dying between the answer and the commit ----

KILLED_READING = """
import sys
from datetime import datetime
from pathlib import Path
import sqlalchemy as sa
from billing.core import failpoints
from billing.core.clock import ManualClock
from billing.postgres.engines import sqlalchemy_url
from billing.reporting.confirmations import ConfirmationStore
from billing.providers.files import FileProvider
from billing.reporting.read_back import ReadBack
url, now, record, folder, nth = sys.argv[1:]
failpoints.arm(f"report.after_reading={nth}", Path(record))
ReadBack(
    ConfirmationStore(sa.create_engine(sqlalchemy_url(url))), FileProvider(Path(folder)),
    ManualClock(datetime.fromisoformat(now)), environment="test",
).confirm()
"""


@pytest.mark.parametrize("nth", [1, 2])
def test_a_reader_killed_after_an_answer_loses_and_repeats_nothing(
    container: Container, database_url: str, tmp_path: Path, nth: int
) -> None:
    desk = Desk(container, container.file.inner, CustomerIds.OURS)
    container.use(100)
    container.use(7, customer="globex")
    desk.advance()
    desk.edit(70)
    desk.edit(1, customer="globex")
    desk.later(hours=1)
    record = tmp_path / "points"
    arguments = [database_url, container.clock.now().isoformat(), str(record)]
    died = subprocess.run(
        [sys.executable, "-c", KILLED_READING, *arguments, str(tmp_path / "files"), str(nth)],
        check=False, timeout=60,
    )  # fmt: skip
    assert died.returncode == -9
    assert record.read_text() == "report.after_reading\n"
    assert len(desk.rows()) == 2 + (nth - 1)
    assert desk.confirm().resent == 2 - (nth - 1)
    desk.advance()
    desk.later(minutes=15)
    assert desk.confirm().confirmed == 2
    assert len(desk.rows()) == 4
    desk.assert_all_confirmed()
