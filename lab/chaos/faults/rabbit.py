"""RabbitMQ: stopped, killed, short of memory, without the binding, refusing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from kombu import Connection

from billing.transport.topology import BINDING
from lab.chaos.faults.base import Fault, Heard, Spec
from lab.chaos.ground import CONSUMER_1, CONSUMER_2, RELAY_B, WORKER_A, WORKER_B, Ground
from lab.chaos.load import Load
from lab.chaos.schedule import Kind, Turn
from lab.chaos.servers import RABBITMQ, WATCH

_USUAL_WATERMARK: Final = "0.4"
_EVERY_SECONDS: Final = 30.0
_SHOWN_SECONDS: Final = 20.0
_RELAYS: Final = (WORKER_A, RELAY_B)
_CLIENTS: Final = (*_RELAYS, WORKER_B, CONSUMER_1, CONSUMER_2)
_NOTICED: Final = ("broker lost", "relay_cannot_publish", "onnection to broker lost")


class Away(Fault):
    """The broker goes away and comes back."""

    def __init__(self, ground: Ground, load: Load, turn: Turn, *, killed: bool) -> None:
        super().__init__(ground, load, turn)
        self._killed = killed
        self._heard = Heard(ground, *_CLIENTS)
        self._pid = 0

    def inject(self) -> None:
        """Stop it in order, or SIGKILL it."""
        servers = self.ground.servers
        self._pid = servers.kill(RABBITMQ) if self._killed else servers.stop(RABBITMQ)

    def heal(self) -> None:
        """Start it again, on the data that it left."""
        self.ground.servers.start_one(RABBITMQ)

    def hits(self) -> int:
        """One, if its process ended and a client noticed."""
        return int(bool(self._pid) and self._heard.count(*_NOTICED) > 0)


class AwayAgain(Fault):
    """Every thirty seconds it goes away: stopped, killed, stopped, killed."""

    def inject(self) -> None:
        """In ``during``: one after the other."""
        self._heard = Heard(self.ground, *_CLIENTS)
        self._gone = 0

    def during(self) -> None:
        """For the turn's seconds."""
        end = time.monotonic() + self.turn.seconds
        while time.monotonic() < end:
            began = time.monotonic()
            servers = self.ground.servers
            (servers.kill if self._gone % 2 else servers.stop)(RABBITMQ)
            self._gone += 1
            servers.start_one(RABBITMQ)
            time.sleep(max(min(began + _EVERY_SECONDS, end) - time.monotonic(), 0))

    def heal(self) -> None:
        """See that it runs."""
        if not self.ground.servers.alive(RABBITMQ):
            self.ground.servers.start_one(RABBITMQ)

    def hits(self) -> int:
        """How often it went, if the clients noticed it as often at least."""
        return min(self._gone, self._heard.count(*_NOTICED))


class Alarm(Fault):
    """The memory alarm: RabbitMQ blocks everybody who publishes."""

    def inject(self) -> None:
        """Lower the watermark to nothing."""
        self._blocked = 0
        self.ground.servers.rabbitmqctl("set_vm_memory_high_watermark", "0")

    def during(self) -> None:
        """Count the connections that it blocks meanwhile."""
        super().during()
        states = self.ground.servers.rabbitmqctl("list_connections", "-q", "state")
        self._blocked = states.count("blocked")

    def heal(self) -> None:
        """The watermark as it is by default."""
        self.ground.servers.rabbitmqctl("set_vm_memory_high_watermark", _USUAL_WATERMARK)

    def hits(self) -> int:
        """Connections that RabbitMQ said were blocked."""
        return self._blocked


class Unroutable(Fault):
    """The binding of the usage queue is taken away: what is published comes back."""

    def inject(self) -> None:
        """Begin to listen."""
        self._heard = Heard(self.ground, *_RELAYS)

    def during(self) -> None:
        """Take it away until a relay has met it; each relay that connects puts it back."""

        def met() -> bool:
            with Connection(self.ground.servers.url(RABBITMQ, WATCH)) as connection:
                channel: Any = connection.channel()
                settings = self.ground.driver_settings()
                channel.queue_unbind(settings.usage_queue, settings.usage_exchange, BINDING)
            return self.hits() >= self.turn.hits

        self.happens(met, _SHOWN_SECONDS)

    def heal(self) -> None:
        """The relays bind it again by themselves; that they do is a part of the test."""

    def hits(self) -> int:
        """Batches that came back."""
        return self._heard.count("could not route")


class Refused(Fault):
    """The usage queue is full and refuses (nack), while nobody consumes."""

    def inject(self) -> None:
        """No consumers, and room for one message."""
        self._heard = Heard(self.ground, *_RELAYS)
        for name in (CONSUMER_1, CONSUMER_2):
            self.ground.supervisor.drop(name)
        queue = self.ground.driver_settings().usage_queue.replace(".", "\\.")
        self.ground.servers.rabbitmqctl(
            "set_policy", "chaos-full", f"^{queue}$", '{"max-length": 1}', "--apply-to", "queues"
        )

    def during(self) -> None:
        """Until a batch was refused."""
        self.happens(lambda: self.hits() > 0, _SHOWN_SECONDS)

    def heal(self) -> None:
        """Room and consumers again."""
        self.ground.servers.rabbitmqctl("clear_policy", "chaos-full")
        self.ground.start_and_await(CONSUMER_1, CONSUMER_2)

    def hits(self) -> int:
        """Batches that were refused."""
        return self._heard.count("RabbitMQ refused")


def _away(*, killed: bool) -> Callable[[Ground, Load, Turn], Fault]:
    return lambda ground, load, turn: Away(ground, load, turn, killed=killed)


def specs() -> list[Spec]:
    """Every fault of RabbitMQ."""
    return [
        Spec(
            Kind(name="rabbitmq-stopped", seconds=(0.5, 5.0)),
            "RabbitMQ is stopped and started",
            _away(killed=False),
        ),
        Spec(
            Kind(name="rabbitmq-killed", seconds=(0.5, 5.0)),
            "RabbitMQ is killed and started",
            _away(killed=True),
        ),
        Spec(
            Kind(name="rabbitmq-away-every-30-s", seconds=(30.0, 120.0)),
            "RabbitMQ is stopped and killed in turns, every 30 s",
            AwayAgain,
        ),
        Spec(
            Kind(name="rabbitmq-alarm", seconds=(4.0, 60.0)),
            "RabbitMQ's memory alarm blocks publishers",
            Alarm,
        ),
        Spec(Kind(name="rabbitmq-unroutable"), "events come back as unroutable", Unroutable),
        Spec(Kind(name="rabbitmq-nack"), "the usage queue is full and refuses", Refused),
    ]
