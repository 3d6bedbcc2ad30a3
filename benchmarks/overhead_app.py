"""The app of suite overhead: the shipped app with one task, unmetered, metered, and leased.

The body leaves one byte in a file, by which the driver counts; it costs about two microseconds and
is the same in all.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any, Final

from celery import Celery
from kombu import Exchange, Queue

from benchmarks.events import LEASED_SKU, SKU
from billing.settings import Settings
from workers.app import make_app
from workers.metered import MeteredTask

LANES: Final = ("plain", "metered", "leased")


def queue_of(settings: Settings, lane: str) -> str:
    """The queue that the tasks of one lane go through."""
    return f"{settings.task_queue}.{lane}"


def ticks_of(settings: Settings, lane: str) -> Path:
    """The file that gets a byte for each body of one lane that ran."""
    return settings.spool_dir / f"ticks-{lane}"


def make_bench_app(settings: Settings) -> Celery:
    """The shipped app with a task for each lane, ``bench.plain`` and so on."""
    app = make_app(settings)
    app.conf.imports = ()
    names = [settings.task_queue, *(queue_of(settings, lane) for lane in LANES)]
    app.conf.task_queues = [Queue(name, Exchange(name), routing_key=name) for name in names]
    settings.spool_dir.mkdir(parents=True, exist_ok=True)

    plainly: dict[str, Any] = {"Request": "benchmarks.overhead_request:PlainRequest"}
    billed: dict[str, Any] = {
        "base": MeteredTask,
        "Request": "benchmarks.overhead_request:BilledRequest",
    }

    @app.task(shared=False, name="bench.plain", ignore_result=True, acks_late=True, **plainly)
    def plain() -> None:
        _tick(ticks_of(settings, "plain"))

    @app.task(shared=False, name="bench.metered", ignore_result=True, sku=SKU, **billed)
    def metered() -> None:
        _tick(ticks_of(settings, "metered"))

    @app.task(shared=False, name="bench.leased", ignore_result=True, sku=LEASED_SKU, **billed)
    def leased() -> None:
        _tick(ticks_of(settings, "leased"))

    return app


def task_of(app: Celery, lane: str) -> Any:  # noqa: ANN401 - Celery's or a metered one
    """The task of one lane."""
    return app.tasks[f"bench.{lane}"]


def _tick(file: Path) -> None:
    os.write(_opened(file), b".")


@cache
def _opened(file: Path) -> int:
    """Opened once in each process that runs tasks; O_APPEND keeps bytes of several apart."""
    return os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
