"""Which processes the demo runs, and how each is started."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from lab.demo.children import Program

SITE_LOG: Final = "site-access.log"
SITE_URL: Final = "site.url"


def site(folder: Path) -> Program:
    """The documentation server; its URL is in ``SITE_URL`` once it answers."""
    announce = folder / SITE_URL
    script = Path(__file__).with_name("site.py")
    return Program(
        name="site",
        arguments=[
            *(sys.executable, "-I", "-S", str(script)),
            *("--announce", str(announce), "--access-log", str(folder / SITE_LOG)),
        ],
        ready=lambda _log: announce.exists(),
    )


def worker(name: str, concurrency: int) -> Program:
    """The Celery worker, with the relay in its main process.

    Args:
        name: Of the node, of its own among all workers on the broker.
        concurrency: Processes of its pool.
    """
    return _celery(
        "worker",
        [
            *("--pool", "prefork", "--concurrency", str(concurrency), "--task-events"),
            *("--hostname", f"{name}@%h", "--include", "lab.demo.tasks", "--loglevel", "INFO"),
            # One worker has nobody to gossip or synchronise with.
            *("--without-gossip", "--without-mingle"),
        ],
        ready_mark=" ready.",
    )


def beat(folder: Path) -> Program:
    """Celery beat, which has expired holds swept and partitions made."""
    return _celery(
        "beat",
        ["--schedule", str(folder / "beat-schedule"), "--pidfile", "", "--loglevel", "INFO"],
        ready_mark="beat: Starting",
    )


def consumer() -> Program:
    """The consumer of usage events."""
    program = Path(sys.executable).with_name("billing")
    return Program(
        name="consumer",
        arguments=[str(program), "consumer"],
        ready=lambda log: "consumer_started" in log,
    )


def _celery(name: str, options: Sequence[str], *, ready_mark: str) -> Program:
    return Program(
        name=name,
        arguments=[sys.executable, "-m", "celery", "-A", "workers", name, *options],
        ready=lambda log: ready_mark in log,
    )
