"""The app of the live tests: metered tasks that end in every way there is.

Loaded by real workers (``celery -A live_app``) and by the tests that submit to them. Every body
that runs leaves a line in the file ``WEIGHBRIDGE_SPOOL_DIR/trace``.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from typing import Any

from celery import Celery, Task
from celery.exceptions import Ignore, Reject

from billing.settings import Settings
from workers.app import make_app
from workers.current_usage import usage
from workers.task import MeteredTask


class Marked(MeteredTask):
    """Short delays, so that what comes back comes back within a test."""

    abstract = True
    default_retry_delay = 1
    max_retries = 2


def trace(task: Task, word: str = "") -> None:
    """Leave a line; O_APPEND keeps lines of several processes whole."""
    folder = task.app.metering.settings.spool_dir
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "trace").open("a") as file:
        file.write(f"{task.name} {task.request.id} {word}\n")


def make_live_app(settings: Settings) -> Celery:
    """The shipped app, with these tasks beside its own."""
    app = make_app(settings)
    # A message's own hard limit counts only where no longer soft one comes first: see startup.py.
    app.conf.update(result_expires=120, task_soft_time_limit=None)
    app.conf.imports = ()
    # How long Celery waits for a last word of a child that died; 10 s by default.
    app.conf.worker_lost_wait = 2.0
    _plain_ends(app)
    _leased(app)
    _hard_ends(app)
    _canvas(app)
    _outages(app)
    return app


def _plain_ends(app: Celery) -> None:
    @app.task(shared=False, base=Marked, sku="page", name="live.page", bind=True)
    def page(self: Any, word: str = "", *_: Any) -> str:
        trace(self, word)
        usage.record(cost_micros=100, subject=word or None)
        return word

    @app.task(shared=False, base=Marked, sku="pages", name="live.pages", bind=True)
    def pages(self: Any, count: int) -> int:
        trace(self)
        usage.record(quantity=count)
        return count

    @app.task(shared=False, base=Marked, sku="page", name="live.fail", bind=True)
    def fail(self: Any) -> None:
        trace(self)
        raise ValueError("no")

    @app.task(shared=False, base=Marked, sku="page", name="live.retry", bind=True)
    def retry(self: Any) -> int:
        trace(self, str(self.request.retries))
        if self.request.retries == 0:
            raise self.retry(countdown=0.2)
        return int(self.request.retries)

    @app.task(shared=False, base=Marked, sku="page", name="live.ignore", bind=True)
    def ignore(self: Any) -> None:
        trace(self)
        raise Ignore

    @app.task(shared=False, base=Marked, sku="page", name="live.reject", bind=True)
    def reject(self: Any) -> None:
        trace(self)
        raise Reject("no", requeue=False)

    @app.task(shared=False, base=Marked, sku="page", name="live.replace", bind=True)
    def replace(self: Any) -> Any:
        trace(self)
        return self.replace(pages.s(4))

    @app.task(shared=False, base=Marked, sku="deferred", name="live.deferred", bind=True)
    def deferred(self: Any) -> str:
        trace(self)
        return "ran"


def _leased(app: Celery) -> None:
    @app.task(shared=False, base=Marked, sku="leased", name="live.leased", bind=True)
    def leased(self: Any, word: str = "") -> str:
        trace(self, word)
        usage.record(cost_micros=100)
        return word


def _hard_ends(app: Celery) -> None:
    @app.task(shared=False, base=Marked, sku="page", name="live.exit", bind=True)
    def leave(self: Any) -> None:
        trace(self)
        sys.exit(3)

    @app.task(shared=False, base=Marked, sku="page", name="live.lost", bind=True, max_retries=0)
    def lost(self: Any) -> None:
        trace(self)
        os.kill(os.getpid(), signal.SIGKILL)

    @app.task(shared=False, base=Marked, sku="page", name="live.lost_once", bind=True)
    def lost_once(self: Any) -> str:
        trace(self, str(self.request.retries))
        if self.request.retries == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return "back"

    @app.task(
        shared=False, base=Marked, sku="page", name="live.sleep", bind=True, time_limit=20,
    )  # fmt: skip
    def sleep(self: Any, seconds: float) -> str:
        trace(self, "began")
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(0.02)
        trace(self, "ended")
        return "slept"

    @app.task(shared=False, base=Marked, sku="page", name="live.burn", bind=True)
    def burn(self: Any, rounds: int) -> str:
        # One call into C that no signal handler can interrupt.
        trace(self, "began")
        return hashlib.pbkdf2_hmac("sha256", b"p", b"s", rounds).hex()


def _canvas(app: Celery) -> None:
    @app.task(shared=False, name="live.plain")
    def plain(value: Any = None, *_: Any) -> Any:
        return value

    @app.task(shared=False, base=Marked, sku="page", name="live.body", bind=True)
    def body(self: Any, results: Any) -> Any:
        trace(self)
        return results


def _outages(app: Celery) -> None:
    @app.task(shared=False, base=Marked, sku="allowed", name="live.allowed", bind=True)
    def allowed(self: Any) -> str:
        trace(self)
        return "ran"

    @app.task(shared=False, base=Marked, sku="strict", name="live.strict", bind=True)
    def strict(self: Any) -> str:
        trace(self)
        return "ran"

    @app.task(shared=False, base=Marked, sku="page", name="live.gated", bind=True, time_limit=60)
    def gated(self: Any) -> str:
        """Runs until the test makes the file ``WEIGHBRIDGE_SPOOL_DIR/gate``."""
        trace(self, "began")
        gate = self.app.metering.settings.spool_dir / "gate"
        deadline = time.monotonic() + 50
        while not gate.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        trace(self, "ended")
        return "went through"


if __name__ != "__main__" and os.environ.get("WEIGHBRIDGE_LIVE_APP") == "yes":
    app = make_live_app(Settings())
