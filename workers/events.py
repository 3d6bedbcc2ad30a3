"""Task events without publisher confirms.

Messages of tasks are confirmed (``broker_transport_options``), because a task that is deferred must
not be lost between two messages. Celery would wait for a confirm of each flush of task events too,
in the loop of the worker's main process: measured with short tasks, two fifths of that process's
time went into these flushes. An event that is lost is one that Flower does not show.
"""

from __future__ import annotations

from typing import Any

from celery.app.events import Events
from celery.events import EventDispatcher


class UnconfirmedDispatcher(EventDispatcher):
    """Celery's dispatcher, on a connection of its own without confirms."""

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
        super().__init__(connection, hostname, enabled, channel, *args, **options)


class UnconfirmedEvents(Events):
    """``app.events`` of a metered app."""

    dispatcher_cls = "workers.events:UnconfirmedDispatcher"


def _without_confirms(connection: Any) -> None:
    """Of connections that are still to be made, and of the one that is there.

    A channel of py-amqp asks its connection when it is opened.
    """
    options = dict(connection.transport_options or {})
    connection.transport_options = {**options, "confirm_publish": False}
    if connection.connected and hasattr(connection.connection, "confirm_publish"):
        connection.connection.confirm_publish = False
