"""The relay as a part of every worker: a thread of its main process."""

from __future__ import annotations

import threading
from typing import Any

from celery import bootsteps

JOIN_SECONDS = 10


class RelayStep(bootsteps.StartStopStep):
    """Drains the outbox to RabbitMQ while the worker runs; what is left waits for the next relay.

    ``WEIGHBRIDGE_RELAY_IN_WORKER=false`` leaves it to ``billing relay``.
    """

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def include_if(self, parent: Any) -> bool:
        """True if this worker is to relay (``relay_in_worker``)."""
        return bool(parent.app.metering.settings.relay_in_worker)

    def start(self, parent: Any) -> None:
        """Start relaying."""
        self._stop.clear()
        relay = parent.app.metering.container.relay(self._stop)
        self._thread = threading.Thread(
            target=relay.run, args=(self._stop,), name="weighbridge-relay", daemon=True
        )
        self._thread.start()

    def stop(self, parent: Any) -> None:  # noqa: ARG002 - Celery's signature
        """Stop relaying; what is left in the outbox waits for the next relay."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS)
            self._thread = None

    terminate = stop
