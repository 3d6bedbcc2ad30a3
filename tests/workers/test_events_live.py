"""What watches a worker is told of every task's end, also of those it ended with."""

from __future__ import annotations

from typing import Any

import pytest
from live import Live
from support import eventually

pytestmark = [pytest.mark.worker, pytest.mark.rabbitmq]


def told(queue: Any) -> set[tuple[str, str]]:
    """Task and kind of every event in the queue."""
    found: set[tuple[str, str]] = set()
    while (message := queue.get(no_ack=True)) is not None:
        payload = message.payload
        events = payload if isinstance(payload, list) else [payload]
        found |= {(event["uuid"], event["type"]) for event in events}
    return found


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_task_that_the_worker_was_at_when_it_was_stopped_is_told_to_the_end(
    live: Live, pool: str
) -> None:
    with live.app.connection_for_read() as reading:
        queue = live.app.events.Receiver(reading, routing_key="task.#").queue(
            reading.default_channel
        )
        queue.declare()
        with live.worker(pool) as worker:
            quick = live.task("page").bill_to("acme").delay("one")
            slow = live.task("sleep").bill_to("acme").delay(2.0)
            live.await_done([quick])
            eventually(lambda: live.trace("began"), timeout=30, message="the slow one runs")
            worker.process.terminate()
            worker.process.wait(30)
        assert slow.state == "SUCCESS"
        expected = {
            (task.id, kind)
            for task in (quick, slow)
            for kind in ("task-received", "task-started", "task-succeeded")
        }
        assert expected <= told(queue)
