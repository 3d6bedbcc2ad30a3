from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
from celery import Celery, signals

from billing.container import Container
from billing.core.clock import ManualClock, format_instant
from billing.testing import MemorySystem
from lab.demo.scenario import CAPTURE, Batch, Call, Way, capture, forensic
from lab.demo.submission import Submitted, submit
from workers.billing_header import HEADER
from workers.metering import Metering


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("submission", broker="memory://", backend="cache+memory://", set_as_current=False)
    memory = MemorySystem(skus=[], credits={})
    Metering(app, build=lambda _settings: cast("Container", memory))
    yield app
    app.close()


@pytest.fixture
def sent() -> Iterator[list[dict[str, Any]]]:
    """The headers of every message that is published."""
    messages: list[dict[str, Any]] = []

    def note(headers: dict[str, Any], **_: Any) -> None:
        messages.append(headers)

    signals.before_task_publish.connect(note)
    yield messages
    signals.before_task_publish.disconnect(note)


def batch(way: Way, count: int = 3, calls: tuple[Call, ...] = ()) -> Batch:
    captures = tuple(capture(f"http://site/{number}") for number in range(count))
    return Batch(customer="atlas", way=way, calls=calls or captures)


@pytest.mark.parametrize("way", list(Way))
def test_every_way_sends_each_call_to_be_paid_by_the_customer(
    app: Celery, sent: list[dict[str, Any]], clock: ManualClock, way: Way
):
    submitted = submit(app, batch(way), clock)
    metered = [message for message in sent if message["task"] == CAPTURE]
    assert {message[HEADER]["customer"] for message in metered} == {"atlas"}
    assert {message["id"] for message in metered} == {each.task_id for each in submitted.tickets}
    assert [each.call.urls[0] for each in submitted.tickets] == [
        f"http://site/{number}" for number in range(3)
    ]


def test_a_message_delivered_twice_is_the_same_message(
    app: Celery, sent: list[dict[str, Any]], clock: ManualClock
):
    submitted = submit(app, batch(Way.TWICE, count=1), clock)
    first, second = sent
    assert first["id"] == second["id"] == submitted.tickets[0].task_id
    assert first[HEADER] == second[HEADER]
    assert first[HEADER]["metered_at"] == format_instant(clock.now())
    assert submitted.tickets[0].deliveries == 2


def test_a_chords_body_is_told_apart_from_its_metered_tasks(app: Celery, clock: ManualClock):
    submitted = submit(app, batch(Way.CHORD), clock)
    assert list(submitted.bodies.values()) == ["atlas"]
    assert not submitted.bodies.keys() & {each.task_id for each in submitted.tickets}
    assert len(submitted.groups) == 1


@pytest.mark.parametrize("way", [Way.BILL_TO, Way.OPTION, Way.GROUP])
def test_a_time_limit_goes_with_its_call(
    app: Celery, sent: list[dict[str, Any]], clock: ManualClock, way: Way
):
    call = forensic("http://slow/1", "page", 40, 2)
    submit(app, batch(way, calls=(call,)), clock)
    (message,) = sent
    assert message["timelimit"] == [None, 2]


def test_what_was_submitted_adds_up(app: Celery, clock: ManualClock):
    together = Submitted()
    together += submit(app, batch(Way.GROUP, count=2), clock)
    together += submit(app, batch(Way.CHORD, count=3), clock)
    assert (len(together.tickets), len(together.bodies), len(together.groups)) == (5, 1, 2)
