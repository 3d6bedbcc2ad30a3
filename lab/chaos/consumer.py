"""``python -m lab.chaos.consumer``: the shipped consumer, with a clock that may be wrong."""

from __future__ import annotations

import os
import signal
import sys
import threading

from billing.container import Container
from billing.settings import Settings
from lab.chaos.app import OffsetClock


def main() -> None:
    """Consume until SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    clock = OffsetClock(float(os.environ.get("CHAOS_CLOCK_OFFSET", "0")))
    with Container(Settings(), clock=clock) as container:
        consumer = container.consumer()
        sys.stdout.write("consumer started\n")
        sys.stdout.flush()
        consumer.run(stop)


if __name__ == "__main__":
    main()
