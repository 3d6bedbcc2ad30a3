"""Every event delivered one to five times, shuffled, to four consumers."""

from __future__ import annotations

import threading
from typing import Any, Final

from kombu import Connection

from billing.transport.topology import BINDING
from lab.chaos.faults.base import Fault, Spec
from lab.chaos.ground import CONSUMER_1, CONSUMER_2
from lab.chaos.schedule import Kind
from lab.chaos.servers import RABBITMQ, WATCH

_TAP: Final = "chaos.tap"
_MOST_COPIES: Final = 4
_BUFFER: Final = 40
_MORE: Final = ("consumer-3", "consumer-4")


class Repeated(Fault):
    """A tap gets a copy of each event, and puts up to four more into the queue, out of order."""

    def inject(self) -> None:
        """Two more consumers, the tap, and whoever repeats."""
        self._copies = 0
        self._stop = threading.Event()
        self.ground.start_and_await(*_MORE)
        settings = self.ground.driver_settings()
        self._queue = settings.usage_queue
        self._connection = Connection(self.ground.servers.url(RABBITMQ, WATCH))
        channel: Any = self._connection.channel()
        channel.confirm_select()
        channel.queue_declare(_TAP, durable=False, auto_delete=False)
        channel.queue_bind(_TAP, settings.usage_exchange, BINDING)
        self._channel = channel
        self._thread = threading.Thread(target=self._run, name="chaos-tap", daemon=True)
        self._thread.start()

    def heal(self) -> None:
        """No tap; the two consumers go when the queue has been seen by all."""
        self._stop.set()
        if hasattr(self, "_thread"):
            self._thread.join(10)
            self._channel.queue_delete(_TAP)
            self._connection.release()
        for name in _MORE:
            self.ground.supervisor.drop(name)

    def hits(self) -> int:
        """Copies that were put into the queue."""
        return self._copies

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._repeat(self._taken())
        except Exception as error:  # noqa: BLE001 - a thread has nobody else to tell
            self.ground.say(f"the tap ended: {error}")

    def _taken(self) -> list[Any]:
        taken: list[Any] = []
        while len(taken) < _BUFFER and not self._stop.is_set():
            message = self._channel.basic_get(_TAP, no_ack=True)
            if message is None:
                if self._stop.wait(0.05) or taken:
                    break
                continue
            taken.append(message)
        return taken

    def _repeat(self, taken: list[Any]) -> None:
        copies = [message for message in taken for _ in range(self.random.randint(0, _MOST_COPIES))]
        self.random.shuffle(copies)
        for message in copies:
            # Straight into the queue: by the exchange it would come to the tap again.
            self._channel.basic_publish(message, exchange="", routing_key=self._queue)
            self._copies += 1


def specs() -> list[Spec]:
    """Repeated deliveries."""
    names = f"{CONSUMER_1}, {CONSUMER_2} and two more"
    return [
        Spec(
            Kind(name="delivered-repeatedly", seconds=(5.0, 30.0)),
            f"every event one to five times, shuffled, to four consumers ({names})",
            Repeated,
        ),
    ]
