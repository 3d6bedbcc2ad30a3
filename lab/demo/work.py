"""Submitting the waves and waiting until everything that follows from them is done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from celery import Celery

from billing.container import Container
from billing.devtools.embedded_servers.process import interrupts_deferred
from lab.demo.bars import Bars
from lab.demo.books import events_logged
from lab.demo.children import Children
from lab.demo.errors import DemoError
from lab.demo.results import Results
from lab.demo.scenario import Batch, interleaved, waves
from lab.demo.submission import submit

_POLL_SECONDS: Final = 0.25
_STALL_SECONDS: Final = 60.0
"""So long nothing may happen at all before the demo gives up."""
_DRAIN_SECONDS: Final = 30.0
"""So long the last events may be on their way; after it the checks say what is missing."""


@dataclass(slots=True)
class _Pulse:
    """Whether anything still happens."""

    figures: tuple[int, ...] = ()
    since: float = field(default_factory=time.monotonic)

    def feel(self, *figures: int) -> None:
        """Take in the newest figures.

        Raises:
            TimeoutError: They have been the same for too long.
        """
        if figures != self.figures:
            self.figures, self.since = figures, time.monotonic()
        elif time.monotonic() - self.since > _STALL_SECONDS:
            raise TimeoutError


class Work:
    """The demo's tasks, from submission to log.

    Args:
        app: The Celery app.
        system: This process's servers and stores.
        children: Watched while waiting.
        bars: Show how far everything is.
    """

    def __init__(self, app: Celery, container: Container, children: Children, bars: Bars) -> None:
        self._app = app
        self._system = container
        self._children = children
        self._bars = bars
        self._pulse = _Pulse()
        self._next_look = 0.0
        self.results = Results(app.backend)  # type: ignore[arg-type]  # of Redis: key-value

    def run(self, planned: Sequence[Batch]) -> None:
        """Submit wave after wave and wait for their results, then until the way is drained.

        Raises:
            DemoError: A process has ended, or nothing happens any more.
        """
        for wave in waves(planned):
            for batch in interleaved(wave):
                self._submit(batch)
                self._look()
            while self.results.pending:
                self._look(pause=_POLL_SECONDS)
        self._drain()
        # Once more, so that the bars end with the last figures.
        self._next_look = 0.0
        self._look()

    def _submit(self, batch: Batch) -> None:
        # Ctrl-C waits until the batch is out. Raised between two halves of a frame it would have
        # Kombu close a channel on which the broker can answer nothing any more: for ever.
        with interrupts_deferred():
            self.results.expect(submit(self._app, batch, self._system.clock))

    def _drain(self) -> None:
        deadline = time.monotonic() + _DRAIN_SECONDS
        while not self._drained() and time.monotonic() < deadline:
            self._look(pause=_POLL_SECONDS)

    def _drained(self) -> bool:
        return (
            events_logged(self._system) >= len(self.results.tickets)
            and self._system.outbox.length() == 0
            and not self._system.quota.open_holds()
        )

    def _look(self, pause: float = 0.0) -> None:
        time.sleep(pause)
        self._children.check()
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _POLL_SECONDS
        self.results.ask()
        logged = events_logged(self._system)
        self._bars.show(
            submitted=len(self.results.tickets),
            logged=logged,
            by_customer=self.results.by_customer(),
        )
        try:
            self._pulse.feel(len(self.results.tickets), self.results.pending, logged)
        except TimeoutError:
            raise DemoError(
                f"nothing has happened for {_STALL_SECONDS:g} s; {self.results.pending:,} tasks "
                f"have no result, {logged:,} events are in the log\n"
                f"{self._children.tail('worker')}\n{self._children.tail('consumer')}"
            ) from None
