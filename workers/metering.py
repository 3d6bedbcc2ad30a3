"""Metering(app): the one line that puts Weighbridge into a Celery app."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any

import structlog
from celery import Celery, signals

from billing.container import Container
from billing.core.clock import Clock
from billing.core.errors import InvalidValue
from billing.core.reservation import ReleaseCause
from billing.metering.meter import Meter
from billing.settings import Settings
from workers.billing_header import HEADER, BillingHeader, current_customer, running_header
from workers.monitoring_events import FlushEventsStep
from workers.relay_step import RelayStep
from workers.startup_checks import StartupCheckStep
from workers.worker_request import release

log = structlog.get_logger(__name__)


class Metering:
    """Puts metering into an app: tasks with ``base=MeteredTask`` are billed.

    Nothing connects before the first task. Each process builds its own connections: those of a
    parent are never used in a forked child.

    Args:
        app: The Celery app.
        settings: Where the servers are; read from the environment if not given.
        build: Makes the system of one process; given in tests and in eager use without servers.
    """

    def __init__(
        self,
        app: Celery,
        settings: Settings | None = None,
        build: Callable[[Settings], Container] = Container,
    ) -> None:
        self.app = app
        self.settings = settings or Settings()
        self._build = build
        self._lock = threading.Lock()
        self._pid = 0
        self._container: Container | None = None
        app.metering = self  # type: ignore[attr-defined]  # where a task finds it
        if app.events_cls == Celery.events_cls:
            app.events_cls = f"{__package__}.monitoring_events:UnconfirmedEvents"
            app.steps["consumer"].add(FlushEventsStep)
        # Beat's jobs are tasks of every metered app; imported when a worker loads its tasks.
        signals.import_modules.connect(self._import_jobs, sender=app, weak=False)
        app.steps["worker"].add(StartupCheckStep)
        app.steps["worker"].add(RelayStep)
        # weak=False: nobody else keeps these.
        signals.before_task_publish.connect(self._inherit, weak=False)
        signals.task_revoked.connect(self._on_revoked, weak=False)
        signals.worker_process_init.connect(self._on_fork, weak=False)
        # A process that ends gives its leases back; for one that is killed, the relay does.
        signals.worker_process_shutdown.connect(self._on_end, weak=False)
        signals.worker_shutdown.connect(self._on_end, weak=False)

    @property
    def container(self) -> Container:
        """This process's servers and stores."""
        if self._container is None or self._pid != os.getpid():
            with self._lock:
                if self._container is None or self._pid != os.getpid():
                    self._container = self._build(self.settings)
                    self._pid = os.getpid()
        return self._container

    @property
    def clock(self) -> Clock:
        """The time."""
        return self.container.clock

    @property
    def meter(self) -> Meter:
        """The meter that a task's process admits and settles with."""
        return self.container.meter

    @property
    def parent_meter(self) -> Meter:
        """The meter of the worker's main process, with short time-outs."""
        return self.container.parent_meter

    def _import_jobs(self, **_: Any) -> None:
        import_module(f"{__package__}.beat_jobs")

    def _on_fork(self, **_: Any) -> None:
        # A lock that another thread of the parent held at the fork would stay held for ever here.
        self._lock = threading.Lock()
        self._container = None

    def _on_end(self, **_: Any) -> None:
        container = self._container
        if container is not None and self._pid == os.getpid():
            container.end_leases()

    def _inherit(self, headers: dict[str, Any] | None = None, **_: Any) -> None:
        """Pass the customer on through a plain task before or between metered ones."""
        if headers is None or HEADER in headers:
            return
        try:
            customer = current_customer()
        except InvalidValue:
            return
        if customer is not None:
            # The parent's instant: run again, it would pass another one on to the same children.
            parent = running_header()
            at = parent.metered_at if parent else self.clock.now()
            headers[HEADER] = BillingHeader(customer, at).to_message()

    def _on_revoked(self, sender: Any = None, request: Any = None, **_: Any) -> None:
        if request is not None:
            release(sender, request, ReleaseCause.REVOKED)
