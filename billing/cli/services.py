"""Commands that run for long: an orderly end, their figures, a progress bar."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Final, TypeVar

import structlog
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from billing.cli.output import err

_log = structlog.get_logger(__name__)

Item = TypeVar("Item")

_TTY_SECONDS: Final = 1.0
_LOG_SECONDS: Final = 30.0
_RATE_SECONDS: Final = 10.0


@contextmanager
def until_signalled() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets; a second signal acts as it would without us."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        # Signals reach the main thread only; a test in another one sets the event itself.
        yield stop
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def give_back() -> None:
        for number, handler in before.items():
            # None: set by other than Python code, which cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()
        give_back()

    for number in numbers:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        give_back()


class Rate:
    """A rate per second, over the last ten seconds. Counted in one thread, read in another.

    Args:
        monotonic: Seconds that only grow.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._counts: deque[tuple[float, int]] = deque()
        self._lock = threading.Lock()
        self.total = 0

    def add(self, count: int) -> None:
        """Count this many more."""
        with self._lock:
            self.total += count
            self._counts.append((self._monotonic(), count))
            self._forget()

    def per_second(self) -> float:
        """The mean of the last ten seconds."""
        with self._lock:
            self._forget()
            return sum(count for _, count in self._counts) / _RATE_SECONDS

    def _forget(self) -> None:
        while self._counts and self._counts[0][0] <= self._monotonic() - _RATE_SECONDS:
            self._counts.popleft()


@contextmanager
def reporting(
    name: str, figures: Callable[[], dict[str, object]], *, every_seconds: float | None = None
) -> Iterator[None]:
    """Show ``figures`` while the block runs: one live line on a terminal, else a log line at times.

    Args:
        name: What is running.
        figures: Names and values; called from a thread of its own, and may fail.
        every_seconds: How often; by default every second on a terminal, else every 30.
    """
    console = err()
    done = threading.Event()
    live = console.status(f"{name}: starting") if console.is_terminal else None
    pause = every_seconds or (_TTY_SECONDS if live else _LOG_SECONDS)

    def show() -> None:
        try:
            shown = figures()
        except Exception as error:  # noqa: BLE001 - a view must not end what it looks at
            shown = {"unknown": str(error)[:80]}
        if live is not None:
            live.update(f"{name}: " + ", ".join(f"{key} {value}" for key, value in shown.items()))
        else:
            _log.info(f"{name} running", **shown)

    def repeat() -> None:
        while not done.wait(pause):
            show()

    reporter = threading.Thread(target=repeat, name=f"{name}-report", daemon=True)
    with live if live is not None else nullcontext():
        reporter.start()
        try:
            yield
        finally:
            done.set()
            reporter.join(timeout=5)


def with_progress(items: Iterable[Item], *, name: str, total: int | None = None) -> Iterator[Item]:
    """The items, with a bar on standard error that grows by one for each; gone at the end.

    Args:
        items: Made as they are taken.
        name: What is being done.
        total: How many there will be; None where nobody knows.
    """
    console = err()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(name, total=total)
        for item in items:
            yield item
            bar.advance(task)
