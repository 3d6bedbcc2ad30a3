"""Detached server processes: started in a session of their own, known again, ended by pid.

A pid alone says nothing once its process is gone and the number is used again, so a process is
remembered together with the instant it was started at.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

from billing.core.errors import WeighbridgeError
from billing.server_urls import started_at

POLL_SECONDS: Final = 0.05
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_SECONDS: Final = 20.0
"""The longest time for a server to stop before it is killed; RabbitMQ needs about five."""
_LOG_TAIL_CHARACTERS: Final = 1500


class LocalServerError(WeighbridgeError):
    """An embedded server cannot be had; names the server and the remedy."""

    def __init__(self, server: str, problem: str, remedy: str) -> None:
        self.server = server
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{server}: {problem}. Remedy: {remedy}")


class EndedAtStart(LocalServerError):  # noqa: N818 - says what happened, beside LocalServerError
    """A server ended before it answered. Its port may have been taken: worth another try."""


@dataclass(frozen=True, slots=True)
class Command:
    """One process to start. ``user``: the system user to run as, None for ours."""

    name: str
    arguments: Sequence[str]
    folder: Path
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    stop_signal: int = signal.SIGTERM


@dataclass(frozen=True, slots=True)
class Process:
    """A started process. ``started`` distinguishes it from a later one of the same pid."""

    name: str
    pid: int
    started: str
    stop_signal: int
    child: subprocess.Popen[bytes] | None = field(default=None, compare=False, repr=False)

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        if self.child is not None:
            # Otherwise it would stay a zombie of ours.
            self.child.poll()
        return started_at(self.pid) == self.started

    def send(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def spawn(command: Command) -> Process:
    """Start a command in a session of its own, so that the terminal's Ctrl-C does not reach it.

    Raises:
        LocalServerError: It could not be started.
    """
    with command.log.open("ab") as log:
        try:
            child = subprocess.Popen(  # noqa: S603 - our own command lines, no shell
                list(command.arguments),
                cwd=command.folder,
                env=environment(command.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=command.user,
                group=group_of(command.user),
                extra_groups=None if command.user is None else [],
            )
        except OSError as error:
            raise LocalServerError(
                command.name, f"{command.arguments[0]} does not start: {error}", "see the message"
            ) from error
    started = started_at(child.pid) or "gone"
    return Process(command.name, child.pid, started, command.stop_signal, child)


def group_of(user: str | None) -> int | None:
    """The primary group of a system user; None for ours."""
    if user is None:
        return None
    import pwd  # noqa: PLC0415 - not on every platform, and needed as root only

    return pwd.getpwnam(user).pw_gid


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Make a server's environment: PATH, and ``extra``."""
    path = os.pathsep.join(
        [os.environ.get("PATH", os.defpath), "/usr/local/bin", "/usr/bin", "/bin"]
    )
    return {"PATH": path, "LC_ALL": "C", "TZ": "UTC", **extra}


def end(processes: Sequence[Process], *, timeout_seconds: float = STOP_SECONDS) -> None:
    """Stop these processes, all at once; kill what has not stopped in time."""
    for process in processes:
        process.send(process.stop_signal)
    if _wait_until(lambda: not any(p.alive for p in processes), timeout_seconds):
        return
    for process in processes:
        process.send(signal.SIGKILL)
    _wait_until(lambda: not any(p.alive for p in processes), timeout_seconds)


def wait_ready(
    server: str,
    ready: Callable[[], bool],
    processes: Sequence[Process],
    *,
    log: Path,
    timeout_seconds: float,
) -> None:
    """Wait until a server answers.

    Raises:
        LocalServerError: It has ended, or did not answer in time; with the end of its log.
    """
    ended: list[str] = []

    def answered_or_ended() -> bool:
        ended.extend(p.name for p in processes if not p.alive)
        return bool(ended) or ready()

    in_time = _wait_until(answered_or_ended, timeout_seconds)
    if in_time and not ended:
        return
    problem = f"{ended[0]} ended at start" if ended else f"no answer within {timeout_seconds:g} s"
    with contextlib.suppress(OSError):
        problem += (
            f"; its log ends with:\n{log.read_text('utf-8', 'replace')[-_LOG_TAIL_CHARACTERS:]}"
        )
    raise (EndedAtStart if ended else LocalServerError)(server, problem, f"see {log}")


def _wait_until(condition: Callable[[], bool], timeout_seconds: float) -> bool:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Hold back SIGINT, SIGTERM and SIGHUP until the end of the block, then let them act.

    For the moment between starting a process and writing down its pid, for stopping, and for what
    must not be left half done. In any thread but the main one signals do not arrive, and nothing
    is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def remember(number: int, _: FrameType | None) -> None:
        arrived.append(number)

    # What is ignored (as SIGHUP under nohup) stays so, and takes no other signal's place.
    heard = [n for n in _ENDING if signal.getsignal(n) is not signal.SIG_IGN]
    before = {n: signal.signal(n, remember) for n in heard}
    try:
        yield
    finally:
        for ending, handler in before.items():
            # None: it was not set by Python code and cannot be put back.
            signal.signal(ending, signal.SIG_DFL if handler is None else handler)
        for number in arrived[:1]:
            signal.raise_signal(number)


@contextlib.contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that ``finally`` runs and servers are stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
