"""Beat's jobs on the way to a billing provider: what is due is done, the invariant is checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from celery import Celery
from pydantic import SecretStr
from structlog.testing import capture_logs
from support import add_customer, add_sku, make_event

from billing.container import Container
from billing.core.periods import hour_floor
from billing.core.usage_event import usage_line
from billing.settings import Settings
from billing.usage_log.log_writer import LogWriter
from workers.app import make_app

SKU = "page"
NOTHING = {"confirmed": 0, "resent": 0, "parked": 0}


class Beat:
    """An installation whose jobs run in this process, at once."""

    def __init__(self, settings: Settings) -> None:
        self.app: Celery = make_app(settings)
        self.app.loader.import_default_modules()
        app: Any = self.app
        self.container: Container = app.metering.container
        clock = self.container.clock
        wide = timedelta(days=400)
        self.writer = LogWriter(
            self.container.engine, clock=clock, max_age=wide, max_ahead=wide, currency="USD"
        )

    def fire(self, job: str) -> Any:
        """One run of a job, as a worker would; what it returned."""
        return self.app.tasks[f"billing.{job}"].apply().get()

    def use(self, amount: int, hours_ago: int = 4) -> None:
        """Usage of an hour that is over."""
        at = hour_floor(self.container.clock.now()) - timedelta(hours=hours_ago)
        event = make_event(
            metered_at=at + timedelta(minutes=5), finished_at=at + timedelta(minutes=6),
            customer="acme", sku=SKU, line=usage_line(SKU), amount_microcredits=amount,
            held_microcredits=amount,
        )  # fmt: skip
        assert self.writer.write([event.to_wire()]).inserted == 1

    def states(self) -> list[str]:
        """Every report's state."""
        with self.container.engine.connect() as connection:
            query = sa.text("SELECT state FROM usage_reports ORDER BY id")
            return list(connection.execute(query).scalars())

    def close(self) -> None:
        self.container.close()
        self.app.close()


@pytest.fixture
def open_beat(
    settings: Settings,
    engine: sa.Engine,
    redis_client: redis.Redis,  # noqa: ARG001 - clears the test's keys
) -> Iterator[Callable[..., Beat]]:
    """Makes an installation with settings changed as the test likes."""
    add_sku(engine, SKU, price=1)
    add_customer(engine, "acme")
    opened: list[Beat] = []

    def open_beat(**changes: object) -> Beat:
        opened.append(Beat(settings.model_copy(update=changes)))
        return opened[-1]

    yield open_beat
    for each in opened:
        each.close()


@pytest.fixture
def beat(open_beat: Callable[..., Beat]) -> Beat:
    """One that reports to the built-in ledger."""
    return open_beat(provider="ledger")


def test_what_is_due_is_reported_read_back_and_adds_up(beat: Beat):
    beat.use(1_500_000)
    assert beat.fire("report_usage")["became"] == {"accepted": 1}
    assert beat.fire("report_usage")["planned"] == 0
    assert beat.fire("confirm_reports") == NOTHING  # not before a quarter of an hour
    with beat.container.engine.begin() as connection:
        connection.execute(sa.text("UPDATE usage_reports SET confirm_at = answered_at"))
    assert beat.fire("confirm_reports") == NOTHING | {"confirmed": 1}
    assert beat.states() == ["confirmed"]
    assert beat.fire("poll_invoices")["done"] == 0
    assert beat.fire("check_reports") == []


def test_the_job_in_several_workers_at_once_reports_once(
    beat: Beat, open_beat: Callable[..., Beat]
):
    for hours_ago in range(4, 24):
        beat.use(7, hours_ago)
    with ThreadPoolExecutor(3) as pool:
        each = [beat, open_beat(provider="ledger"), open_beat(provider="ledger")]
        told = list(pool.map(lambda one: one.fire("report_usage"), each))
    assert sum(one["became"].get("accepted", 0) for one in told) == 20
    assert set(beat.states()) == {"accepted"}
    assert beat.fire("check_reports") == []


def test_usage_of_closed_hours_in_no_report_is_told_with_its_amount(beat: Beat):
    beat.use(1_500_000)
    with capture_logs() as logs:
        (found,) = beat.fire("check_reports")
    assert (found["customer"], found["sku"]) == ("acme", SKU)
    assert (found["unclaimed_microcredits"], found["off_by_microcredits"]) == (1_500_000, 0)
    assert [one["event"] for one in logs] == ["closed_usage_in_no_report"]


@pytest.mark.parametrize("off_by", [1, -1])
def test_books_that_are_off_by_a_unit_are_told(beat: Beat, off_by: int):
    beat.use(1_500_000)
    beat.use(7, hours_ago=5)
    beat.fire("report_usage")
    assert beat.fire("check_reports") == []
    with beat.container.engine.begin() as connection:
        change = (
            "UPDATE usage_reports SET held_microcredits = held_microcredits - :off_by, value = "
        )
        where = "value - :off_by WHERE held_microcredits = 7"
        assert connection.execute(sa.text(change + where), {"off_by": off_by}).rowcount == 1
    with capture_logs() as logs:
        (found,) = beat.fire("check_reports")
    assert (found["unclaimed_microcredits"], found["off_by_microcredits"]) == (0, off_by)
    assert [one["event"] for one in logs] == ["reports_differ_from_log"]


@pytest.mark.parametrize("key", ["nonsense", "pk_test_abc", "sk_live_abc"])
def test_a_key_that_cannot_be_used_is_told_and_nothing_fails_or_is_lost(
    open_beat: Callable[..., Beat], key: str
):
    beat = open_beat(provider="stripe", stripe_api_key=SecretStr(key))
    beat.use(1_500_000)
    for job in ("report_usage", "confirm_reports", "poll_invoices"):
        with capture_logs() as logs:
            beat.fire(job)
        [told] = [one for one in logs if one["log_level"] == "error"]
        assert "STRIPE_API_KEY" in told["error"]
        assert key not in str(told)
        assert told["money"]
    assert beat.states() == []
    (found,) = beat.fire("check_reports")
    assert found["unclaimed_microcredits"] == 1_500_000
