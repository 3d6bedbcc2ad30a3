"""The app of a run: the shipped one, with metered tasks that say aloud what they did.

Loaded by the workers (``lab.chaos.celery_app``) and by the driver that submits.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from celery import Celery, signals

from billing.container import Container
from billing.core.clock import SystemClock
from billing.settings import Settings
from lab.chaos import truth
from lab.chaos.bodies import RUN, Told, register
from lab.chaos.truth import NONE, Note, Word
from workers.app import configuration
from workers.beat_schedule import BEAT_SCHEDULE
from workers.errors import QuotaExceeded
from workers.metering import Metering

LOST_WAIT_SECONDS: Final = 1.0
"""How long Celery waits for a last word of a child that died; 10 s by default."""

BEAT_JOBS: Final = tuple(dict.fromkeys(entry["task"] for entry in BEAT_SCHEDULE.values()))
"""Every job of the shipped schedule; a new one there is killed here, too."""
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
    # Killed with its child, a job comes back after three minutes by default: longer than a drain.
    job = {"time_limit": 120, "default_retry_delay": 1}
    app.conf.task_annotations = dict.fromkeys(BEAT_JOBS, job)
    app.chaos_truth = truth_file
    Metering(app, settings, lambda given: Container(given, clock=OffsetClock(clock_offset_seconds)))
    register(app)
    _tell(app)
    _tell_of_beat(app)
    return app  # type: ignore[no-any-return]  # Celery has no types


def _tell(app: Any) -> None:
    """What Celery says of each task, and the death of whoever runs a marked job of beat's."""
    file: Path = app.chaos_truth

    def on_start(task: Any = None, **_: Any) -> None:
        setattr(task.request, RUN, secrets.token_hex(6))
        _perhaps_die(task.name, file.parent)

    def on_success(sender: Any = None, **_: Any) -> None:
        if isinstance(sender, Told):
            sender.note(Word.SUCCEEDED)

    def on_failure(sender: Any = None, task_id: str = "", exception: Any = None, **_: Any) -> None:
        if isinstance(sender, Told):
            run = getattr(sender.request, RUN, NONE)
            denied = isinstance(exception, QuotaExceeded)
            word = Word.DENIED if denied else Word.FAILED
            truth.write(file, Note(word, task_id, run, type(exception).__name__))

    # weak=False: nobody else keeps these.
    signals.task_prerun.connect(on_start, weak=False)
    signals.task_success.connect(on_success, weak=False)
    signals.task_failure.connect(on_failure, weak=False)


def _tell_of_beat(app: Any) -> None:
    """The death of beat itself, right before and right after it has sent a marked job."""
    folder: Path = app.chaos_truth.parent

    def on_beat(**_: Any) -> None:
        # Only in beat: the driver sends jobs, too, and has to live.
        signals.before_task_publish.connect(before, weak=False)
        signals.after_task_publish.connect(after, weak=False)

    def before(sender: Any = None, **_: Any) -> None:
        _die_if_marked(folder, SENDING + str(sender))

    def after(sender: Any = None, **_: Any) -> None:
        _die_if_marked(folder, SENT + str(sender))

    signals.beat_init.connect(on_beat, weak=False)


SENDING: Final = "sending:"
"""Before a job's name: beat dies when it is about to send it."""
SENT: Final = "sent:"
"""Before a job's name: beat dies when it has just sent it."""


def mark_for_death(folder: Path, place: str) -> Path:
    """Whoever next comes to a place dies there; the file that says so, gone once it has.

    Args:
        folder: Of the run.
        place: A job of beat's, for whoever runs it; for beat itself with ``SENDING`` or ``SENT``
            before it.
    """
    marked = folder / f"kill-{place}"
    marked.touch()
    return marked


def deaths(folder: Path) -> list[str]:
    """The places at which a process died."""
    file = folder / "job-deaths"
    return file.read_text().split() if file.exists() else []


def _perhaps_die(job: str, folder: Path) -> None:
    if job not in BEAT_JOBS or not _is_marked(folder, job):
        return
    # At any instant of the job: at its very beginning, or some milliseconds into it.
    delay = random.choice((0.0, 0.002, 0.01, 0.03))  # noqa: S311 - not a secret
    if delay:
        threading.Timer(delay, _die, (folder, job)).start()
    else:
        _die(folder, job)


def _die_if_marked(folder: Path, place: str) -> None:
    if _is_marked(folder, place):
        _die(folder, place)


def _is_marked(folder: Path, place: str) -> bool:
    """Whether somebody is to die there; the mark is taken away by the asking."""
    try:
        (folder / f"kill-{place}").unlink()
    except FileNotFoundError:
        return False
    return True


def _die(folder: Path, place: str) -> None:
    with contextlib.suppress(OSError), (folder / "job-deaths").open("a") as file:
        file.write(f"{place}\n")
        file.flush()
        os.fsync(file.fileno())
    os.kill(os.getpid(), signal.SIGKILL)
