"""What Celery tells the worker's main process of a task whose child cannot speak any more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery.contrib.testing.mocks import TaskMessage
from celery.exceptions import TimeLimitExceeded
from celery.signals import before_task_publish
from memory_app import CREDIT, Bench, make_bench

from workers.billing_header import BillingHeader
from workers.worker_request import MeteredRequest


@pytest.fixture
def bench() -> Bench:
    bench = make_bench()
    bench.app.conf.task_always_eager = False
    return bench


@pytest.fixture
def sent() -> Iterator[list[dict[str, Any]]]:
    """The headers of every message that is published."""
    messages: list[dict[str, Any]] = []

    def remember(headers: dict[str, Any] | None = None, **_: object) -> None:
        messages.append(dict(headers or {}))

    before_task_publish.connect(remember)
    yield messages
    before_task_publish.disconnect(remember)


def running(bench: Bench) -> MeteredRequest:
    """A task of acme that holds one credit and has a metered error callback."""
    task = bench.app.tasks["failing"]
    header = BillingHeader("acme", bench.container.clock.now()).to_message()
    message = TaskMessage(task.name, id="slow", errbacks=[bench.app.tasks["fixed"].s()])
    message.headers |= {"billing": header, "timelimit": [None, None], "root_id": "slow"}
    message.delivery_info = {"exchange": "", "routing_key": "celery"}
    task.push_request(id="slow", headers={"billing": header}, called_directly=False)
    task.before_start("slow", (), {})
    task.pop_request()
    return MeteredRequest(
        message, app=bench.app, task=task, hostname="w", on_ack=lambda *_: None,
        on_reject=lambda *_: None, eventer=None,
    )  # fmt: skip


def timed_out() -> ExceptionInfo:
    try:
        raise TimeLimitExceeded(20)  # noqa: TRY301 - an ExceptionInfo is made of what was caught
    except TimeLimitExceeded:
        return ExceptionInfo()


def test_a_hard_time_limit_sends_its_metered_error_callback_once(bench: Bench, sent: Any):
    # As billiard does: the result first, the time-out next, and only then it kills the child.
    request = running(bench)
    request.on_failure(timed_out())
    request.on_timeout(False, 20)

    assert [message["billing"]["customer"] for message in sent] == ["acme"]
    assert bench.balance == (0, 0, 100 * CREDIT)
    assert [event.reason for event in bench.container.events] == ["hard_time_limit"]


def test_a_pool_that_tells_of_the_time_limit_only_sends_it_as_well(bench: Bench, sent: Any):
    request = running(bench)
    request.on_timeout(False, 20)

    assert [message["billing"]["customer"] for message in sent] == ["acme"]
    assert bench.balance == (0, 0, 100 * CREDIT)


def test_a_soft_time_limit_is_the_childs_own_to_tell(bench: Bench, sent: Any):
    running(bench).on_timeout(True, 10)

    assert sent == []
    assert bench.balance == (CREDIT, 0, 99 * CREDIT)
