"""The node's disk is full, with Redis and RabbitMQ away: the last way out is closed."""

from __future__ import annotations

import os
from contextlib import suppress

from lab.chaos.errors import ChaosError
from lab.chaos.faults.base import Fault, Heard, Spec
from lab.chaos.faults.postgres import mounted, unmounted
from lab.chaos.ground import WORKER_B
from lab.chaos.proxy import Mode
from lab.chaos.schedule import Kind
from lab.chaos.servers import RABBITMQ, REDIS, WORK

_SECONDS = 20.0
_TASKS = 6
_BODY_SECONDS = 2.0


class SpoolFull(Fault):
    """The spool lies on a small disk, which is full; tasks settle with Redis and RabbitMQ away."""

    def inject(self) -> None:
        """Put node b's spool on a small tmpfs, fill it, start runs, cut Redis and RabbitMQ."""
        if os.geteuid() != 0:
            raise ChaosError("a small disk can be mounted by root only; leave this fault out")
        ground = self.ground
        ground.supervisor.drop(WORKER_B, gently=True)
        self._disk = ground.spool_of("b") / "spool"
        self._disk.mkdir(parents=True, exist_ok=True)
        mounted(self._disk, "1m")
        ground.start_and_await(WORKER_B)
        self._heard = Heard(ground, WORKER_B)
        self._sent = {}
        for number in range(_TASKS):
            customer = f"rich-{number % 4}"
            task = self.load.send("page", customer, _BODY_SECONDS)
            if task is not None:
                self._sent[task] = customer
        # Its hold is taken before the servers go, so that a body runs into this.
        self.until(self._one_runs, _SECONDS, "a run on node b")
        with suppress(OSError), (self._disk / "ballast").open("wb") as ballast:
            while True:
                ballast.write(b"\0" * 4096)
                ballast.flush()
        for name in (REDIS, RABBITMQ):
            ground.servers.proxy(name, WORK).set(Mode.CUT)

    def during(self) -> None:
        """Until a run could keep its usage nowhere."""
        self.happens(lambda: self.hits() > 0, _SECONDS)

    def heal(self) -> None:
        """Servers and room again; the spool back on the usual disk."""
        ground = self.ground
        for name in (REDIS, RABBITMQ):
            ground.servers.proxy(name, WORK).heal()
        with suppress(FileNotFoundError):
            (self._disk / "ballast").unlink()
        # What was spooled in between is relayed before the disk goes.
        self.until(lambda: not list(self._disk.glob("*.jsonl")), _SECONDS, "an empty spool")
        ground.supervisor.drop(WORKER_B, gently=True)
        unmounted(self._disk)
        ground.start_and_await(WORKER_B)

    def _one_runs(self) -> bool:
        quota = self.ground.container.quota
        return any(
            self._heard.count(task)
            and (hold := quota.hold(customer, task))
            and hold.held_microcredits
            for task, customer in self._sent.items()
        )

    def hits(self) -> int:
        """Tasks that went back to their queue because their usage could be kept nowhere."""
        return self._heard.count("usage_not_stored")


def specs() -> list[Spec]:
    """A full spool."""
    return [
        Spec(
            Kind(name="spool-full", last=True, quick=False),
            "the node's disk is full while Redis and RabbitMQ are away",
            SpoolFull,
        ),
    ]
