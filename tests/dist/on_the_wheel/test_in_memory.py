"""Metering without a server, as an app's own unit tests do it."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from weighbridge import CustomerRequired, MeteredTask, Metering, QuotaExceeded, usage
from weighbridge.testing import MemorySystem, sku


@pytest.fixture
def app() -> Celery:
    app = Celery("shop", set_as_current=False)
    app.conf.update(task_always_eager=True, task_store_eager_result=False)
    return app


@pytest.fixture
def system(app: Celery) -> MemorySystem:
    system = MemorySystem(skus=[sku("page-render", price="2.5")], credits={"acme": "4"})
    Metering(app, build=lambda _: system)
    return system


@pytest.fixture
def render(app: Celery, system: MemorySystem) -> Any:
    assert system.events == []

    @app.task(base=MeteredTask, sku="page-render")
    def render(url: str) -> str:
        usage.record(subject=url)
        return url.upper()

    return render


def test_a_task_is_held_and_settled(render: Any, system: MemorySystem):
    assert render.bill_to("acme").delay("a").get() == "A"
    (event,) = system.events
    assert (event.customer, event.line, event.subject) == ("acme", "page-render", "a")
    assert event.amount_microcredits == 2_500_000


def test_a_task_that_cannot_be_paid_is_refused(render: Any):
    render.bill_to("acme").delay("a").get()
    with pytest.raises(QuotaExceeded):
        render.bill_to("acme").delay("b").get()


def test_a_task_without_a_customer_is_refused(render: Any):
    with pytest.raises(CustomerRequired):
        render.delay("a")
