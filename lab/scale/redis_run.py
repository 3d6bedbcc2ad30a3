"""Redis Cluster under load: a primary is killed, its replica takes over, an empty node replaces it.

Without replicas the killed primary comes back with its own append-only file. With a late replica,
what the primary did in its last seconds is lost to Redis: the journals have the events, and the
balances forget until they are rebuilt.
"""

from __future__ import annotations

import threading
import time
from dataclasses import asdict
from typing import Any, Final

from pydantic import SecretStr
from redis.crc import key_slot

from billing.redis.keys import shard_of
from lab.scale.load import CUSTOMER
from lab.scale.redis_nodes import RedisNodes
from lab.scale.stage import Ground, Say, Stage, wait_for_end
from lab.scale.verdict import UNAVAILABLE, Attempt, books, interruption, percentile

_CUSTOMERS: Final = 64
_CREDITS: Final = 50
_PROCESSES: Final = 2
_RATE: Final = 120.0
_AWAY_SECONDS: Final = 3.0
_LATE_SECONDS: Final = 1.5


def run(
    ground: Ground, seconds: float, say: Say, *, replicas: int = 1, late: bool = False
) -> dict[str, Any]:
    """Run for so many seconds of load; a third of them before the kill."""
    nodes = RedisNodes(ground.folder_of("redis") / "nodes", replicas=replicas)
    try:
        say(f"Redis Cluster: 3 primaries, {replicas} replica(s) each")
        nodes.start()
        stage = Stage(
            ground,
            "redis",
            customers=_CUSTOMERS,
            credits_each=_CREDITS,
            changed={"redis_url": SecretStr(nodes.url), "relay_in_worker": False},
        )
        stage.set_up()
        stage.command("consumer")
        stage.command("relay")
        return _under_load(stage, nodes, seconds, say, with_replica=replicas > 0, late=late)
    finally:
        nodes.remove()


def _under_load(
    stage: Stage,
    nodes: RedisNodes,
    seconds: float,
    say: Say,
    *,
    with_replica: bool,
    late: bool,
) -> dict[str, Any]:
    keys = stage.container.keys
    load = stage.load(_PROCESSES, seconds, _RATE)
    wait_for_end(load, seconds / 3)
    slot = key_slot(keys.out(shard_of(CUSTOMER.format(0))).encode())
    victim = nodes.primary_of(slot)
    on_victim = {
        customer
        for number in range(_CUSTOMERS)
        if nodes.primary_of(key_slot(keys.account(customer := CUSTOMER.format(number)).encode()))
        is victim
    }
    cut_off = nodes.cut_off(victim) if late else []
    if late:
        say(f"its replica is cut off for {_LATE_SECONDS} s")
        threading.Event().wait(_LATE_SECONDS)
    say(f"killing {victim.name}, which has {len(on_victim)} of {_CUSTOMERS} customers")
    killed_at = time.time()
    nodes.kill(victim)
    if with_replica:
        nodes.wait("a replica took over", lambda: nodes.primary_of(slot) is not victim)
        took_over = time.time() - killed_at
        nodes.let_in(cut_off)
        nodes.replace(victim)
    else:
        threading.Event().wait(_AWAY_SECONDS)
        nodes.restart(victim)
        nodes.wait("the node is back", nodes.healthy)
        took_over = time.time() - killed_at
    whole_again = time.time() - killed_at
    wait_for_end(load, 3 * seconds)
    attempts = stage.attempts()
    complete = stage.settle_down({each.task for each in attempts if each.outcome == "admitted"})
    return _document(stage, attempts, on_victim, killed_at) | {
        "replaced_by": "its replica, then an empty node" if with_replica else "itself",
        "new_primary_after_seconds": round(took_over, 2),
        "whole_again_after_seconds": round(whole_again, 2),
        "log_complete": complete,
    }


def _document(
    stage: Stage, attempts: list[Attempt], on_victim: set[str], killed_at: float
) -> dict[str, Any]:
    granted = {CUSTOMER.format(number): stage.granted for number in range(stage.customers)}
    theirs = [each for each in attempts if each.customer in on_victim]
    others = [each for each in attempts if each.customer not in on_victim]
    before = [each.answer_seconds for each in attempts if each.at < killed_at - 1]
    after = [each.answer_seconds for each in others if each.at > killed_at]
    settles = [each.settle for each in attempts if each.outcome == "admitted"]
    short = stage.short_balances()
    for customer in short:
        stage.container.account_loader.rebuild(customer, force=True)
    return {
        "books": books(attempts, stage.rows(), granted).document(),
        "attempts": len(attempts),
        "denied": sum(each.outcome not in {"admitted", UNAVAILABLE} for each in attempts),
        "settled_past_redis": sum(each not in {"settled", "exists"} for each in settles),
        "interruption_of_its_shards": asdict(interruption(theirs, killed_at)),
        "interruption_of_others": asdict(interruption(others, killed_at)),
        "admission_p50_ms": round(percentile(before, 50) * 1000, 2),
        "admission_p99_ms": round(percentile(before, 99) * 1000, 2),
        "admission_p99_ms_of_others_after": round(percentile(after, 99) * 1000, 2),
        "slowest_settle_seconds": round(max((e.settle_seconds for e in attempts), default=0), 3),
        "balances_that_forgot": len(short),
        "microcredits_forgotten": sum(short.values()),
        "balances_still_wrong_after_a_rebuild": len(stage.short_balances()),
    }
