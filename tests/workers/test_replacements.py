"""A replaced task's id goes to another task, sometimes much later: with its hold and its header."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from celery import chain, chord
from celery.exceptions import Ignore
from celery.signals import before_task_publish
from memory_app import CREDIT, Bench, make_bench

from workers.billing_header import BillingHeader
from workers.canvas import hand_over
from workers.task import MeteredTask


@pytest.fixture
def bench() -> Bench:
    bench = make_bench()
    # Queues of the broker in memory are shared by all apps of this process.
    bench.app.conf.update(task_always_eager=False, task_default_queue=uuid4().hex)
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


def replace_with(bench: Bench, replacement: Any) -> dict[str, Any]:
    """Run a task of acme that replaces itself, as a worker's child would; returns its header."""

    @bench.app.task(shared=False, base=MeteredTask, sku="fixed", name="replaced", bind=True)
    def replaced(self: Any) -> Any:
        return self.replace(replacement)

    header = BillingHeader("acme", bench.container.clock.now()).to_message()
    replaced.push_request(
        id="the-id", headers={"billing": header}, called_directly=False, is_eager=False
    )
    try:
        replaced.before_start("the-id", (), {})
        with pytest.raises(Ignore):
            replaced()
    finally:
        replaced.pop_request()
    return header


def test_a_replacement_of_the_same_customer_takes_over_hold_and_header(bench: Bench, sent: Any):
    replace_with(bench, bench.app.tasks["measured"].s(2, 4))

    assert sent[0]["id"] == "the-id"
    assert sent[0]["billing"]["customer"] == "acme"
    assert bench.balance == (CREDIT, 0, 99 * CREDIT)
    assert bench.lines == []


def test_a_replacement_of_another_customer_leaves_no_hold_behind(bench: Bench, sent: Any):
    replace_with(bench, bench.app.tasks["measured"].bill_to("globex").s(2, 4))

    assert sent[0]["billing"]["customer"] == "globex"
    assert bench.balance == (0, 0, 100 * CREDIT)
    assert bench.lines == [("failed:fixed:1", "failed", 0)]


def test_a_plain_replacement_leaves_no_hold_behind(bench: Bench):
    replace_with(bench, bench.app.tasks["plain"].s(1))

    assert bench.balance == (0, 0, 100 * CREDIT)


def test_the_last_of_a_chain_that_replaces_a_task_has_its_header_already(bench: Bench):
    fixed, plain = bench.app.tasks["fixed"], bench.app.tasks["plain"]
    header = replace_with(bench, chain(plain.s(1), fixed.si("last")))

    assert bench.balance == (CREDIT, 0, 99 * CREDIT)
    (last,) = _chain_of(bench)
    assert last["options"]["task_id"] == "the-id"
    assert last["options"]["headers"]["billing"] == header


def _chain_of(bench: Bench) -> list[dict[str, Any]]:
    """What the published message says comes after its task."""
    with bench.app.connection_for_read() as connection:
        queue = connection.SimpleQueue(bench.app.conf.task_default_queue)
        message = queue.get(block=False)
        message.ack()
    embedded: list[dict[str, Any]] = message.payload[2]["chain"]
    return embedded


def test_the_body_of_a_chord_that_replaces_a_task_is_its_heir(bench: Bench):
    fixed = bench.app.tasks["fixed"]
    header = BillingHeader("acme", bench.container.clock.now())
    replacement = chord([fixed.s("a"), fixed.s("b")], fixed.si("body"))

    assert hand_over(replacement, header, MeteredTask)
    assert replacement.body.options["headers"]["billing"] == header.to_message()
    assert all("headers" not in member.options for member in replacement.tasks)


def test_a_group_that_replaces_a_task_has_no_heir(bench: Bench):
    fixed = bench.app.tasks["fixed"]
    header = BillingHeader("acme", bench.container.clock.now())

    assert not hand_over(fixed.s("a") | fixed.map(["b"]), header, MeteredTask)
