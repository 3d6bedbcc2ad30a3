"""What really happened, told by the tasks' bodies themselves, past everything that is tested.

One line per note, appended whole (O_APPEND) to one file per run: ``WORD TASK RUN DETAIL``. A *run*
is one admission's worth of a task in one process: a task that comes back is another run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

NONE = "-"


class Word(StrEnum):
    """What a note says."""

    ENDED = "ended"
    """The body reached its end; the detail is what it used, ``SKU=QUANTITY`` by commas."""
    USED = "used"
    """The body is about to fail, having used this: to be charged where the SKU says so."""
    LEASED = "leased"
    """This run was admitted from a lease."""
    SETTLED = "settled"
    """Weighbridge said that this run is settled: from here on it must be in the log."""
    SUCCEEDED = "succeeded"
    """Celery said so."""
    FAILED = "failed"
    """Celery said so; the detail is the exception's name."""
    DENIED = "denied"
    """Celery said so: the task was refused."""


@dataclass(frozen=True, slots=True)
class Note:
    """One line."""

    word: Word
    task_id: str
    run: str
    detail: str = NONE

    @property
    def used(self) -> dict[str, int]:
        """The detail of ``ended`` and ``used``: quantity by SKU."""
        pairs = (part.partition("=") for part in self.detail.split(",") if "=" in part)
        return {sku: int(quantity) for sku, _, quantity in pairs}


def told(used: Mapping[str, int]) -> str:
    """Quantities by SKU as a note's detail."""
    return ",".join(f"{sku}={quantity}" for sku, quantity in sorted(used.items())) or NONE


def write(file: Path, note: Note) -> None:
    """Append a note; whole, also beside other processes and before a SIGKILL that follows."""
    line = f"{note.word.value} {note.task_id} {note.run} {note.detail}\n".encode()
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def read(file: Path) -> list[Note]:
    """Every note so far."""
    try:
        text = file.read_text()
    except FileNotFoundError:
        return []
    return list(_parsed(text.splitlines()))


def _parsed(lines: Iterable[str]) -> Iterator[Note]:
    for line in lines:
        word, task_id, run, detail = line.split(" ", 3)
        yield Note(Word(word), task_id, run, detail)
