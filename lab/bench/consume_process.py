"""One consumer as a process of its own: ``python -m lab.bench.consume_process NUMBER FOLDER``.

It is built like ``billing consumer``. It consumes while the file ``consumers`` in the folder names
a larger number than its own, and leaves a line in ``ticks-NUMBER`` for every batch, after its
COMMIT: the instant in nanoseconds (of the clock that all processes of a machine share), what became
of the messages, and the processor time that the process has used.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from billing.cli.processes import quick_turns, spare_collections
from billing.container import Container
from billing.settings import Settings
from billing.usage_log.log_writer import BatchResult
from lab.bench.errors import BenchError

POLL_SECONDS: Final = 0.005
_RUNNING_POLL_SECONDS: Final = 0.05
"""Rarely: this thread, too, takes turns with those of the consumer."""
LONGEST_SECONDS: Final = 600.0
"""A process whose driver was killed ends by itself."""


@dataclass(frozen=True, slots=True)
class Tick:
    """One batch: when it was committed, and how its messages ended."""

    at_ns: int
    inserted: int
    duplicates: int
    dead: int
    cpu_us: int
    """What the process had used by then."""

    @property
    def messages(self) -> int:
        """All of them."""
        return self.inserted + self.duplicates + self.dead


def ticks_of(folder: Path, number: int) -> Path:
    """The file of one process's batches."""
    return folder / f"ticks-{number}"


def read_ticks(folder: Path, number: int) -> list[Tick]:
    """What one process has told so far; a line that is being written is left for later."""
    try:
        whole, _, _ = ticks_of(folder, number).read_text().rpartition("\n")
    except FileNotFoundError:
        return []
    return [Tick(*map(int, line.split())) for line in whole.splitlines()]


def set_consumers(folder: Path, count: int) -> None:
    """Let the first ``count`` processes consume, and the others not."""
    draft = folder / "consumers.new"
    draft.write_text(str(count))
    draft.replace(folder / "consumers")


def is_ready(folder: Path, number: int) -> bool:
    """Whether a process waits for its turn."""
    return (folder / f"ready-{number}").exists()


def _wanted(folder: Path) -> int:
    try:
        return int((folder / "consumers").read_text())
    except FileNotFoundError:
        return 0


def _cpu_us() -> int:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return int((used.ru_utime + used.ru_stime) * 1_000_000)


def main() -> None:
    """Consume whenever it is this process's turn."""
    number, folder = int(sys.argv[1]), Path(sys.argv[2])
    deadline = time.monotonic() + LONGEST_SECONDS
    out = os.open(ticks_of(folder, number), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def tick(result: BatchResult) -> None:
        told = (result.inserted, result.duplicates, sum(result.dead.values()))
        line = " ".join(map(str, (time.monotonic_ns(), *told, _cpu_us())))
        os.write(out, f"{line}\n".encode())

    with quick_turns(), Container(Settings()) as container:
        consumer = container.consumer(on_batch=tick)
        spare_collections()
        (folder / f"ready-{number}").touch()
        while time.monotonic() < deadline:
            while _wanted(folder) <= number:
                if time.monotonic() > deadline:
                    return
                time.sleep(POLL_SECONDS)
            stop = threading.Event()
            running = threading.Thread(target=consumer.run, args=(stop,))
            running.start()
            while _wanted(folder) > number and time.monotonic() < deadline:
                if not running.is_alive():
                    raise BenchError("the consumer ended by itself")
                time.sleep(_RUNNING_POLL_SECONDS)
            stop.set()
            running.join()


if __name__ == "__main__":
    main()
