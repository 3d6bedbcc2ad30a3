"""What is seen while many reports leave in one run: how fast each part of it, with what memory."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Final

_STATM: Final = Path("/proc/self/statm")
_EVERY: Final = 100
"""Reports between two looks at the memory."""
_MIB: Final = 1024 * 1024


def resident() -> float:
    """MiB that this process has in memory now; where nobody tells (not Linux), the most it had."""
    try:
        pages = int(_STATM.read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return pages * os.sysconf("SC_PAGE_SIZE") / _MIB


class Watch:
    """Divides a run into parts of as many reports each, and notes of each part how it went.

    Not for several threads: whoever tells it takes turns.

    Args:
        count: Reports of the whole run.
        parts: How many parts.
        seconds: Seconds that only grow.
        memory: MiB of this process.
    """

    def __init__(
        self,
        count: int,
        parts: int,
        *,
        seconds: Callable[[], float] = perf_counter,
        memory: Callable[[], float] = resident,
    ) -> None:
        self._size = max(1, count // parts)
        self._parts = parts
        self._seconds = seconds
        self._memory = memory
        self._before = memory()
        self._ends = [seconds()]
        self._most: list[float] = []
        self._highest = 0.0

    def taken(self, number: int) -> None:
        """Another report was taken, the ``number``-th of the run, from 1."""
        end = number % self._size == 0
        if end or number % _EVERY == 0:
            self._highest = max(self._highest, self._memory())
        if end and len(self._most) < self._parts:
            self._ends.append(self._seconds())
            self._most.append(self._highest)
            self._highest = 0.0

    def rates(self) -> list[float]:
        """Reports a second, part by part; the first one begins with the watch."""
        ends = zip(self._ends, self._ends[1:], strict=False)
        return [self._size / (after - before) for before, after in ends]

    def memory(self) -> list[tuple[float, float]]:
        """The most MiB of each part, beside what it was before the first report."""
        return [(most, self._before) for most in self._most]

    def grown(self) -> float:
        """MiB that the most of any part is above what it was before."""
        return max(self._most) - self._before

    def seconds(self) -> float:
        """From the beginning of the watch to the end of the last part."""
        return self._ends[-1] - self._ends[0]
