"""RabbitMQ with three nodes under load: the leader of the usage queue is killed and comes back."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any, Final

import sqlalchemy as sa
from pydantic import SecretStr

from lab.scale.load import CUSTOMER
from lab.scale.rabbitmq_nodes import RabbitNodes
from lab.scale.stage import Ground, Say, Stage, wait_for_end, wait_until
from lab.scale.verdict import books

_CUSTOMERS: Final = 64
_CREDITS: Final = 100_000
_PROCESSES: Final = 2
_RATE: Final = 100.0
_DECLARED_SECONDS: Final = 60.0
_SAMPLE_SECONDS: Final = 0.1
_COUNT: Final = sa.text("SELECT count(*) FROM usage_events")


def run(ground: Ground, seconds: float, say: Say) -> dict[str, Any]:
    """Run for so many seconds of load; a third of them before the kill."""
    nodes = RabbitNodes(ground.folder_of("rabbitmq") / "nodes")
    try:
        say("RabbitMQ: three nodes")
        nodes.start()
        stage = Stage(
            ground,
            "rabbitmq",
            customers=_CUSTOMERS,
            credits_each=_CREDITS,
            changed={"amqp_url": SecretStr(nodes.url), "relay_in_worker": False},
        )
        stage.set_up()
        stage.command("consumer")
        stage.command("relay")
        return _under_load(stage, nodes, seconds, say)
    finally:
        nodes.remove()


def _under_load(stage: Stage, nodes: RabbitNodes, seconds: float, say: Say) -> dict[str, Any]:
    queue = stage.settings.usage_queue
    # The consumer declares the queue when it starts.
    first = nodes.nodes[0]
    wait_until(
        lambda: queue in nodes.ask(first, "rabbitmqctl", "list_queues", "name").split(),
        _DECLARED_SECONDS,
    )
    replicas = nodes.ask(first, "rabbitmq-queues", "quorum_status", queue)
    victim = nodes.leader(queue)
    growth = _Growth(stage)
    growth.start()
    load = stage.load(_PROCESSES, seconds, _RATE)
    wait_for_end(load, seconds / 3)
    say(f"killing {victim.name}, which leads {queue}")
    killed_at = time.time()
    nodes.kill(victim)
    threading.Event().wait(seconds / 6)
    say("starting it again")
    nodes.restart(victim)
    back_after = time.time() - killed_at
    wait_for_end(load, 3 * seconds)
    attempts = stage.attempts()
    admitted = {each.task for each in attempts if each.outcome == "admitted"}
    complete = stage.settle_down(admitted)
    growth.stop()
    granted = {CUSTOMER.format(number): stage.granted for number in range(_CUSTOMERS)}
    return {
        "books": books(attempts, stage.rows(), granted).document(),
        "log_complete": complete,
        "attempts": len(attempts),
        "queue_replicas": replicas.count("follower") + replicas.count("leader"),
        "logged_after_the_kill": growth.rows_since(killed_at),
        "log_stood_still_seconds": round(growth.longest_pause(killed_at), 2),
        "log_stood_still_before_seconds": round(growth.longest_pause(0, killed_at), 2),
        "node_back_after_seconds": round(back_after, 1),
        "slowest_admission_seconds": round(max(each.answer_seconds for each in attempts), 3),
        "slowest_settle_seconds": round(max(each.settle_seconds for each in attempts), 3),
        "admissions_unanswered": sum(not each.answered for each in attempts),
    }


class _Growth(threading.Thread):
    """When the log grew, so that it is known for how long it did not."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(name="growth", daemon=True)
        self._engine = stage.container.engine
        self._over = threading.Event()
        self._grew_at: list[float] = []
        self._had: list[int] = []
        self.rows = 0

    def run(self) -> None:
        while not self._over.wait(_SAMPLE_SECONDS):
            with self._engine.connect() as connection:
                rows = int(connection.execute(_COUNT).scalar_one())
            if rows != self.rows:
                self.rows = rows
                self._grew_at.append(time.time())
                self._had.append(rows)

    def stop(self) -> None:
        self._over.set()
        self.join()

    def longest_pause(self, since: float, until: float = float("inf")) -> float:
        within = [at for at in self._grew_at if since <= at < until]
        return max((later - at for at, later in itertools.pairwise(within)), default=0.0)

    def rows_since(self, instant: float) -> int:
        before = [rows for at, rows in zip(self._grew_at, self._had, strict=True) if at < instant]
        return self.rows - (before[-1] if before else 0)
