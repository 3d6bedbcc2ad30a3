"""The load: tasks of every kind, submitted steadily, each written down with whether it was sent."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from celery.result import GroupResult

from billing.core.credits import MICROCREDITS_PER_CREDIT
from lab.chaos.bodies import EXACT
from lab.chaos.catalogue import TIGHT
from lab.chaos.ground import Ground
from lab.chaos.kinds import choose_one
from workers.billing_header import HEADER, BillingHeader, bill_to

_SEND: Final[dict[str, Any]] = {"retry": False}
_TOP_UP_EVERY: Final = 400
_TOP_UP: Final = 15 * MICROCREDITS_PER_CREDIT
_LOOK_EVERY: Final = 15
_BEHIND: Final = 60
_BEHIND_SECONDS: Final = 1.0
_AWAY_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Sent:
    """One task; ``sure`` where the broker confirmed it. Unsure: it may or may not have arrived."""

    task_id: str
    kind: str
    customer: str
    sure: bool


class Load:
    """Submits until told to stop; a thread of the driver.

    Args:
        ground: Whose broker it submits to.
        seed: Decides kinds and customers.
        per_second: How many submissions.
    """

    def __init__(self, ground: Ground, seed: int, per_second: float) -> None:
        self._ground = ground
        self._random = random.Random(seed)  # noqa: S311 - a schedule, not a secret
        self._pause = 1 / per_second
        self._stop = threading.Event()
        self._paused = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos-load", daemon=True)
        self._lock = threading.Lock()
        self._count = 0
        self.sent: list[Sent] = []
        self.refused = 0
        self.due: Callable[[], datetime | None] = lambda: None
        """Gives the ETA of the next submission; None: now."""
        self.metered_by: timedelta | None = None
        """How far the submitter's clock is off; stamps, without moving when a task runs."""
        self.leased_only = False
        """Submit only what is leased: for faults of that way alone."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Submit no more."""
        self._stop.set()
        self._thread.join(30)

    def pause(self) -> None:
        """Submit nothing until ``resume``."""
        self._paused.set()

    def resume(self) -> None:
        """Go on."""
        self._paused.clear()

    def send(self, kind: str, customer: str, *args: Any, **options: Any) -> str | None:
        """Submit one task; its id, None where the broker did not take it.

        Args:
            kind: Name of a body of ``lab.chaos.bodies``, ``leased.`` before it for its leased twin.
            customer: Who pays.
            args: The body's.
            options: Celery's.
        """
        task = self._ground.app.tasks[EXACT + kind]
        return self._publish(kind, customer, task.s(*args).set(**options))

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._paused.is_set():
                self._stop.wait(0.05)
                continue
            began = time.monotonic()
            self._one()
            self._stop.wait(max(self._pause - (time.monotonic() - began), 0))

    def _one(self) -> None:
        choose = self._random
        self._count += 1
        if self._count % _TOP_UP_EVERY == 0:
            self._top_up()
        if self._count % _LOOK_EVERY == 0 and self._is_behind():
            self._count -= 1
            self._stop.wait(_BEHIND_SECONDS)
            return
        name, kind, customer = choose_one(choose, leased_only=self.leased_only)
        options: dict[str, Any] = {}
        eta = self.due()
        if eta is not None:
            options["eta"] = eta
        elif self.metered_by is not None:
            at = self._ground.container.clock.now() + self.metered_by
            options["headers"] = {HEADER: BillingHeader(customer, at).to_message()}
        signature = kind.make(self._ground.app.tasks, choose)
        signature.set(**options)
        self._publish(name, customer, signature)

    def _publish(self, kind: str, customer: str, signature: Any) -> str | None:
        try:
            with bill_to(customer):
                result = signature.apply_async(**_SEND)
        except Exception:  # noqa: BLE001 - whatever a broken connection makes Kombu raise
            # What was on the wire may have arrived, under an id that we were not told.
            with self._lock:
                self.refused += 1
            self._stop.wait(_AWAY_SECONDS)
            return None
        ids = _ids(result)
        with self._lock:
            self.sent += [Sent(task_id, kind, customer, sure=True) for task_id in ids]
        return ids[-1]

    def _is_behind(self) -> bool:
        """Whether the workers have much to do already; more would only lengthen the drain."""
        try:
            with self._ground.app.connection_for_write() as connection:
                queue = self._ground.driver_settings().task_queue
                channel: Any = connection.channel()
                return int(channel.queue_declare(queue, passive=True).message_count) > _BEHIND
        except Exception:  # noqa: BLE001 - the broker is away: then submissions tell
            return False

    def _top_up(self) -> None:
        for customer in TIGHT:
            try:
                container = self._ground.container
                container.grants.grant(customer, _TOP_UP, f"more-{self._count}")
                container.sync(customer)
            except Exception:  # noqa: BLE001 - a server is away: the balance check tells it later
                return


def _ids(result: Any) -> list[str]:
    """The ids of what was sent at once: of a chain its first, of a group all."""
    if isinstance(result, GroupResult):
        return [child.id for child in result.results or ()]
    while result.parent is not None:
        result = result.parent
    return [result.id]
