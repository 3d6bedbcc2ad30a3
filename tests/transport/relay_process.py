"""A relay as a process of its own, which fail points may kill. Run by the tests with one JSON."""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path

import redis

from billing.core import failpoints
from billing.core.clock import SystemClock
from billing.redis.keys import RedisKeys
from billing.transport.amqp_publisher import AmqpPublisher
from billing.transport.journal import Journal
from billing.transport.outbox import RedisOutbox
from billing.transport.relay import Relay


def main(options: dict[str, str]) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    spool_dir = Path(options["spool_dir"])
    failpoints.arm(options["failpoints"], spool_dir / "reached")
    clock = SystemClock()
    relay = Relay(
        RedisOutbox(
            redis.Redis.from_url(options["redis_url"], socket_timeout=5),
            RedisKeys(options["prefix"]),
        ),
        AmqpPublisher(
            options["amqp_url"],
            exchange=options["exchange"],
            queue=options["queue"],
            timeout_seconds=5,
            cancelled=stop.is_set,
        ),
        Journal(spool_dir / "journal", clock=clock),
        Journal(spool_dir / "spool", fsync=True, clock=clock),
        owner=options["owner"],
        batch=int(options["batch"]),
        clock=clock,
        lease_ms=1000,
    )
    relay.run(stop)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
