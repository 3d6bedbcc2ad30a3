"""The apps of suite overhead: with Weighbridge, and without.

The first is the shipped one with a task unmetered, metered, and leased. The body leaves one byte in
a file, by which the driver counts; it costs about two microseconds and is the same in all.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any, Final

from celery import Celery
from kombu import Exchange, Queue

from billing.server_urls import endpoints_of
from billing.settings import Settings
from lab.bench.events import LEASED_SKU, SKU
from workers.app import configuration, make_app
from workers.task import MeteredTask

BARE: Final = "bare"
"""The lane of an app that has no Weighbridge in it."""
BILLED: Final = ("metered", "leased")
LANES: Final = (BARE, "plain", *BILLED)


_UNBILLED: Final[dict[str, Any]] = {
    "acks_late": True,
    "Request": "lab.bench.overhead_request:PlainRequest",
}


def queue_of(settings: Settings, lane: str) -> str:
    """The queue that the tasks of one lane go through."""
    return f"{settings.task_queue}.{lane}"


def ticks_of(settings: Settings, lane: str) -> Path:
    """The file that gets a byte for each body of one lane that ran."""
    return settings.spool_dir / f"ticks-{lane}"


def make_bench_app(settings: Settings) -> Celery:
    """The shipped app with a task for each lane but the bare one, ``bench.plain`` and so on."""
    app = make_app(settings)
    _prepare(app, settings)
    billed: dict[str, Any] = {
        "base": MeteredTask,
        "Request": "lab.bench.overhead_request:BilledRequest",
    }
    _add(app, settings, "plain", **_UNBILLED)
    _add(app, settings, "metered", sku=SKU, **billed)
    _add(app, settings, "leased", sku=LEASED_SKU, **billed)
    # Only for who submits it.
    _add(app, settings, BARE, **_UNBILLED)
    return app


def make_bare_app(settings: Settings) -> Celery:
    """What somebody has before they use Weighbridge: the same configuration, but its confirms."""
    endpoints = endpoints_of(settings)
    app = Celery("bare", broker=endpoints.amqp_url, backend=endpoints.result_url)
    app.conf.update(configuration(settings, endpoints.amqp_url or ""))
    app.conf.update(broker_transport_options={}, beat_schedule={})
    _prepare(app, settings)
    _add(app, settings, BARE, **_UNBILLED)
    return app


def _prepare(app: Any, settings: Settings) -> None:  # noqa: ANN401 - with an attribute of ours
    app.conf.imports = ()
    names = [settings.task_queue, *(queue_of(settings, lane) for lane in LANES)]
    app.conf.task_queues = [Queue(name, Exchange(name), routing_key=name) for name in names]
    settings.spool_dir.mkdir(parents=True, exist_ok=True)
    app.bench_folder = settings.spool_dir


def _add(app: Celery, settings: Settings, lane: str, **options: Any) -> None:  # noqa: ANN401 - Celery's
    ticks = ticks_of(settings, lane)

    @app.task(shared=False, name=f"bench.{lane}", ignore_result=True, **options)
    def body() -> None:
        _tick(ticks)


def task_of(app: Celery, lane: str) -> Any:  # noqa: ANN401 - Celery's or a metered one
    """The task of one lane."""
    return app.tasks[f"bench.{lane}"]


def _tick(file: Path) -> None:
    os.write(_opened(file), b".")


@cache
def _opened(file: Path) -> int:
    """Opened once in each process that runs tasks; O_APPEND keeps bytes of several apart."""
    return os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
