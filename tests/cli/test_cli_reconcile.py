"""``billing reconcile``: what does not agree is told, put right on demand, and listed."""

from __future__ import annotations

import redis
from commandline import Billing

from billing.container import Container
from billing.core.admission import TaskFacts


def charge(container: Container, task_id: str) -> None:
    """A task that ran, its event logged."""
    facts = TaskFacts(task_id=task_id, customer="acme", metered_at=container.clock.now())
    admission = container.meter.admit(facts, "page-capture", None)
    container.meter.settle(admission, container.meter.recorder(admission.sku))
    entries = [
        entry for shard in range(64) for entry in container.outbox.everything(shard, page=10)
    ]
    container.writer.write([entry.event.to_wire() for entry in entries])
    container.outbox.remove(entries)


def test_books_that_agree_are_said_to(billing: Billing, container: Container, acme: str) -> None:
    del acme
    charge(container, "task-1")
    assert "none; Redis, log, rollups and outbox agree" in billing.table("reconcile")
    assert billing.json("reconcile") == []
    assert "none is open" in billing.table("reconcile", "list")


def test_a_wrong_balance_is_told_then_repaired_then_listed(
    billing: Billing, container: Container, acme: str, redis_client: redis.Redis
) -> None:
    charge(container, "task-1")
    redis_client.hincrby(container.keys.account(acme), "settled", 5)
    told = billing.table("reconcile", code=1)
    assert "settled" in told
    assert "redis_ahead" in told
    assert "billing reconcile --repair" in told
    kinds = {row["kind"]: row["state"] for row in billing.json("reconcile", "list")}
    assert kinds == {"settled": "found", "available": "found"}
    repaired = billing.json("reconcile", "--repair")
    assert {row["state"] for row in repaired} == {"repaired"}
    assert billing.json("reconcile") == []
    assert billing.json("reconcile", "list") == []
    ended = billing.json("reconcile", "list", "--ended")
    assert {row["state"] for row in ended} == {"repaired"}
    assert "repaired" in billing.table("reconcile", "list", "--ended")
