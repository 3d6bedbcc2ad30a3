"""Task events without publisher confirms, and several in a message.

Messages of tasks are confirmed (``broker_transport_options``), because a task that is deferred must
not be lost between two messages. Celery would wait for a confirm of each flush of task events too,
and it flushes at every turn of the loop of the worker's main process. Measured with short tasks,
two fifths of that process's time went into these flushes, with confirms and without. So events wait
for no confirm, and a moment for each other. An event that is lost is one that Flower does not show.
"""

from __future__ import annotations

import time
from typing import Any, Final

from celery import bootsteps
from celery.app.events import Events
from celery.events import EventDispatcher
from kombu.utils.compat import detect_environment

GATHER_SECONDS: Final = 0.05
"""The time events wait for each other: too short for anybody to see in Flower."""
GATHER_EVENTS: Final = 120
"""The most events that wait; some 50 KB."""
_GLANCE_SECONDS: Final = 0.001


class UnconfirmedDispatcher(EventDispatcher):
    """Celery's dispatcher, on a connection of its own without confirms."""

    # Celery's; its stubs do not have them.
    _group_buffer: dict[str, list[Any]]
    on_send_buffered: Any

    def __init__(
        self,
        connection: Any = None,
        hostname: str | None = None,
        enabled: bool = True,
        channel: Any = None,
        *args: Any,
        **options: Any,
    ) -> None:
        # A channel is somebody's who also sends tasks with it: that stays as it is.
        if connection is not None and channel is None:
            _without_confirms(connection)
            if detect_environment() != "default":
                _without_waiting(connection)
        super().__init__(connection, hostname, enabled, channel, *args, **options)
        # Only the consumer of a worker with an event loop asks to be told, so as to flush.
        self._hub: Any = getattr(getattr(self.on_send_buffered, "__self__", None), "hub", None)
        self._due_at = 0.0
        if self._hub is not None:
            self.on_send_buffered = self._gather
            self.buffer_limit = GATHER_EVENTS

    def extend_buffer(self, other: Any) -> None:
        """Take over the events that the dispatcher of a lost connection has not sent."""
        super().extend_buffer(other)
        for group, events in other._group_buffer.items():  # noqa: SLF001 - one more of our kind
            self._group_buffer[group] += events

    def _gather(self) -> None:
        """Flush in a moment, unless that is to happen already."""
        now = time.monotonic()
        if now >= self._due_at:
            self._due_at = now + GATHER_SECONDS
            # Not the timer itself: a thread of the pool may be here, and only this wakes the loop.
            self._hub.call_soon(self._flush_later)

    def _flush_later(self) -> None:
        self._hub.call_later(GATHER_SECONDS, self.flush)


class UnconfirmedEvents(Events):
    """``app.events`` of a metered app."""

    dispatcher_cls = f"{__name__}:UnconfirmedDispatcher"


class FlushEventsStep(bootsteps.StartStopStep):
    """Sends gathered events before their connection is closed.

    When the worker stops, and once more when the pool has ended: the tasks it was still at have
    told of their ends by then.
    """

    requires = ("celery.worker.consumer.events:Events",)

    def stop(self, parent: Any) -> None:
        """Flush. On a broken connection they are kept for the next one."""
        if parent.event_dispatcher:
            parent.event_dispatcher.flush()

    shutdown = stop


def _without_waiting(connection: Any) -> None:
    """Make reads of the events' connection return at once where nothing has come.

    With gevent, Celery's loop reads it after each message of a task, so as not to miss heartbeats,
    and waits 0.1 s there (celery/worker/loops.py, ``synloop``): ten tasks a second and no more.
    """
    read = connection.drain_events

    def drain_events(timeout: float | None = None, **options: Any) -> Any:
        return read(timeout=timeout and min(timeout, _GLANCE_SECONDS), **options)

    connection.drain_events = drain_events


def _without_confirms(connection: Any) -> None:
    """Turn confirms off, for connections still to be made and for the open one.

    A channel of py-amqp asks its connection when it is opened.
    """
    options = dict(connection.transport_options or {})
    connection.transport_options = {**options, "confirm_publish": False}
    if connection.connected and hasattr(connection.connection, "confirm_publish"):
        connection.connection.confirm_publish = False
