"""Resident memory over time: how it is read, and what a row of samples says. The rest is pure."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from lab.bench.report import MIN_REPETITIONS

WARM_UP: Final = 0.2
"""The share of the time that is left out: imports, pools, caches and first batches."""
LEAST: Final = 4 * MIN_REPETITIONS
"""Fewer samples after the warm-up do not make two quarters of five slices."""

_MB: Final = 1_000_000
_HOUR: Final = 3600.0
_RESIDENT: Final = 1
_PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class Sample:
    """Megabytes at an instant, in seconds since the beginning."""

    at: float
    megabytes: float


def resident(pids: Iterable[int]) -> float:
    """Megabytes that these processes have in memory, what they share counted for each (Linux)."""
    pages = 0
    for pid in pids:
        try:
            pages += int((_PROC / str(pid) / "statm").read_text().split()[_RESIDENT])
        except OSError:
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / _MB


def after_warm_up(samples: Sequence[Sample]) -> list[Sample]:
    """The samples that count.

    Raises:
        ValueError: They are too few.
    """
    left = list(samples[int(len(samples) * WARM_UP) :])
    if len(left) < LEAST:
        raise ValueError(f"{len(left)} samples after the warm-up; {LEAST} are needed")
    return left


def quarters(samples: Sequence[Sample]) -> list[tuple[float, float]]:
    """Last and first quarter in five slices each: pairs of their medians, slice by slice."""
    size = len(samples) // 4
    return list(zip(_slices(samples[-size:]), _slices(samples[:size]), strict=True))


def per_hour(samples: Sequence[Sample]) -> float:
    """Megabytes an hour: the slope of the line that fits the samples best."""
    line = statistics.linear_regression(
        [sample.at for sample in samples], [sample.megabytes for sample in samples]
    )
    return line.slope * _HOUR


def _slices(samples: Sequence[Sample]) -> list[float]:
    edges = [len(samples) * number // MIN_REPETITIONS for number in range(MIN_REPETITIONS + 1)]
    return [
        statistics.median(sample.megabytes for sample in samples[low:high])
        for low, high in pairwise(edges)
    ]
