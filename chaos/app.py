"""The app of a run: the shipped one, with metered tasks that say aloud what they did.

Loaded by the workers (``chaos.celery_app``) and by the driver that submits.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import secrets
import signal
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, cast

from celery import Celery, signals

from billing.bootstrap import System
from billing.core.clock import SystemClock
from billing.settings import Settings
from chaos import truth
from chaos.truth import NONE, Note, Word
from workers.app import configuration
from workers.context import usage
from workers.errors import QuotaExceeded
from workers.metered import MeteredTask
from workers.metering import Metering

TIME_LIMIT_SECONDS: Final = 5
LOST_WAIT_SECONDS: Final = 1.0
"""How long Celery waits for a last word of a child that died; 10 s by default."""
_RUN: Final = "_chaos_run"
_BURN_ROUNDS: Final = 60_000_000

BEAT_JOBS: Final = (
    "billing.sweep_holds",
    "billing.ensure_partitions",
    "billing.check_balances",
    "billing.seal_log",
    "billing.report_usage",
    "billing.confirm_reports",
    "billing.poll_invoices",
    "billing.check_reports",
)
_BEAT_SECONDS: Final = 7.0
_BALANCES: Final = "billing.check_balances"
_BALANCES_SECONDS: Final = 20.0
"""It reads twice, seconds apart; more often, and it would be all that the children do."""


class OffsetClock(SystemClock):
    """A machine's clock that is wrong by so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._by = timedelta(seconds=seconds)

    def now(self) -> datetime:
        """What the wrong clock shows."""
        return super().now() + self._by


class Told(MeteredTask):
    """A metered task that notes its runs in the run's file of truth."""

    abstract = True
    default_retry_delay = 1
    # A child that dies is retried under the same id; the nemesis kills many.
    max_retries = 50

    def note(self, word: Word, detail: str = NONE) -> None:
        """Write down what this run came to."""
        request: Any = self.request
        run = getattr(request, _RUN, NONE)
        truth.write(cast("Any", self.app).chaos_truth, Note(word, str(request.id), run, detail))

    def use(self, word: Word, **used: int) -> None:
        """Record usage with Weighbridge and in the file of truth: the last act of a body."""
        own = self.sku
        for sku, quantity in used.items():
            if sku == own:
                if quantity != 1 or own not in _FIXED:
                    usage.record(quantity=quantity)
            else:
                usage.record(quantity=quantity, sku=sku)
        self.note(word, truth.told(used))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As metered; a return means that the run is settled."""
        result = super().__call__(*args, **kwargs)
        if not self.request.called_directly:
            self.note(Word.SETTLED)
        return result


_FIXED: Final = frozenset({"page", "later"})


def make_app(settings: Settings, truth_file: Path, *, clock_offset_seconds: float = 0.0) -> Celery:
    """The app, on the servers that the settings name. Connects to nothing yet."""
    assert settings.amqp_url is not None  # noqa: S101 - the ground names every server
    assert settings.result_url is not None  # noqa: S101 - as above
    app: Any = Celery(
        "chaos",
        broker=settings.amqp_url.get_secret_value(),
        backend=settings.result_url.get_secret_value(),
    )
    app.conf.update(configuration(settings, "amqp://"))
    app.conf.imports = ("workers.schedule",)
    app.conf.task_soft_time_limit = None
    app.conf.result_expires = 600
    app.conf.worker_lost_wait = LOST_WAIT_SECONDS
    app.conf.beat_schedule = {
        name: {
            "task": name,
            "schedule": _BALANCES_SECONDS if name == _BALANCES else _BEAT_SECONDS,
            "options": {"expires": _BEAT_SECONDS},
        }
        for name in BEAT_JOBS
    }
    app.conf.task_annotations = {name: {"time_limit": 120} for name in BEAT_JOBS}
    app.chaos_truth = truth_file
    Metering(app, settings, lambda given: System(given, clock=OffsetClock(clock_offset_seconds)))
    _tasks(app)
    _ends(app)
    _tell(app)
    return app  # type: ignore[no-any-return]  # Celery has no types


def _tasks(app: Any) -> None:
    @app.task(shared=False, base=Told, sku="page", name="chaos.page", bind=True)
    def page(self: Any, seconds: float = 0.0, *_: Any) -> str:
        time.sleep(seconds)
        usage.record(cost_micros=100)
        self.use(Word.ENDED, page=1)
        return "done"

    @app.task(shared=False, base=Told, sku="pages", name="chaos.pages", bind=True)
    def pages(self: Any, count: int, extra: int = 0) -> int:
        self.use(Word.ENDED, pages=count, **({"extra": extra} if extra else {}))
        return count

    @app.task(shared=False, base=Told, sku="later", name="chaos.later", bind=True)
    def later(self: Any) -> str:
        self.use(Word.ENDED, later=1)
        return "done"

    @app.task(shared=False, base=Told, sku="page", name="chaos.again", bind=True)
    def again(self: Any) -> str:
        if not self.request.retries:
            raise self.retry(countdown=0.2)
        self.use(Word.ENDED, page=1)
        return "done"


def _ends(app: Any) -> None:
    @app.task(shared=False, base=Told, sku="page", name="chaos.fails", bind=True)
    def fails(self: Any) -> None:  # noqa: ARG001 - bound, as all are
        raise ValueError("as planned")

    @app.task(shared=False, base=Told, sku="tried", name="chaos.tried", bind=True)
    def tried(self: Any, count: int) -> None:
        self.use(Word.USED, tried=count)
        raise ValueError("as planned, and charged")

    @app.task(shared=False, base=Told, sku="page", name="chaos.loops", bind=True)
    def loops(self: Any) -> None:
        deadline = time.monotonic() + 2 * TIME_LIMIT_SECONDS
        while time.monotonic() < deadline:
            time.sleep(0.01)
        self.use(Word.ENDED, page=1)

    @app.task(shared=False, base=Told, sku="page", name="chaos.burns", bind=True)
    def burns(self: Any) -> None:
        # One call into C that no signal handler can interrupt.
        hashlib.pbkdf2_hmac("sha256", b"p", b"s", _BURN_ROUNDS)
        self.use(Word.ENDED, page=1)


def _tell(app: Any) -> None:
    """What Celery says of each task, and the death of whoever runs a marked job of beat's."""
    file: Path = app.chaos_truth

    def on_start(task: Any = None, **_: Any) -> None:
        setattr(task.request, _RUN, secrets.token_hex(6))
        _perhaps_die(task.name, file.parent)

    def on_success(sender: Any = None, **_: Any) -> None:
        if isinstance(sender, Told):
            sender.note(Word.SUCCEEDED)

    def on_failure(sender: Any = None, task_id: str = "", exception: Any = None, **_: Any) -> None:
        if isinstance(sender, Told):
            run = getattr(sender.request, _RUN, NONE)
            denied = isinstance(exception, QuotaExceeded)
            word = Word.DENIED if denied else Word.FAILED
            truth.write(file, Note(word, task_id, run, type(exception).__name__))

    # weak=False: nobody else keeps these.
    signals.task_prerun.connect(on_start, weak=False)
    signals.task_success.connect(on_success, weak=False)
    signals.task_failure.connect(on_failure, weak=False)


def mark_for_death(folder: Path, job: str) -> Path:
    """Whoever next runs this job of beat's dies in it; the file that says so, gone once it has."""
    marked = folder / f"kill-{job}"
    marked.touch()
    return marked


def deaths(folder: Path) -> list[str]:
    """The jobs in which a process died."""
    file = folder / "job-deaths"
    return file.read_text().split() if file.exists() else []


def _perhaps_die(job: str, folder: Path) -> None:
    if job not in BEAT_JOBS:
        return
    try:
        (folder / f"kill-{job}").unlink()
    except FileNotFoundError:
        return
    # At any instant of the job: at its very beginning, or some milliseconds into it.
    delay = random.choice((0.0, 0.002, 0.01, 0.03))  # noqa: S311 - not a secret
    if delay:
        threading.Timer(delay, _die, (folder, job)).start()
    else:
        _die(folder, job)


def _die(folder: Path, job: str) -> None:
    with contextlib.suppress(OSError), (folder / "job-deaths").open("a") as file:
        file.write(f"{job}\n")
        file.flush()
        os.fsync(file.fileno())
    os.kill(os.getpid(), signal.SIGKILL)
