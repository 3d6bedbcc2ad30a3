"""``make bench ARGS=--check``: has a ratio fallen by half since the committed figures? Pure.

A build's machine is another one and short rounds are noisy, so only a change of twice is told, and
only what shows it twice: the suites of what fell are measured once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lab.bench.report import number

FACTOR: Final = 2.0
_LOWER_IS_BETTER: Final = frozenset({"ms", "s", "MB", "µs/task"})
_NOISY: Final = "p99"
"""The 99th percentile of a short round is one of its few slowest calls: no build is held to it."""

Record = Mapping[str, Any]
"""A figure as ``report.records`` has it."""


@dataclass(frozen=True, slots=True)
class Fall:
    """A figure that is half as good as it was, or worse."""

    suite: str
    name: str
    ratio: float
    committed: float
    lower_is_better: bool

    @property
    def key(self) -> tuple[str, str]:
        """Which figure it is."""
        return self.suite, self.name

    def told(self) -> str:
        """For people."""
        verb = "doubled" if self.lower_is_better else "fallen by half"
        return (
            f"{self.suite}, {self.name}: the ratio has {verb} or worse: {number(self.ratio)}, "
            f"committed {number(self.committed)}"
        )


def compared(found: Iterable[Record], committed: Iterable[Record]) -> list[tuple[Record, Record]]:
    """The figures that both have, but those of 99th percentiles: found and committed."""
    known = {(each["suite"], each["name"]): each for each in committed}
    return [
        (each, known[each["suite"], each["name"]])
        for each in found
        if (each["suite"], each["name"]) in known and _NOISY not in each["name"]
    ]


def fallen(found: Iterable[Record], committed: Iterable[Record]) -> list[Fall]:
    """What is half as good as committed, or worse."""
    falls = []
    for ours, theirs in compared(found, committed):
        lower = ours["unit"] in _LOWER_IS_BETTER
        ratio, before = float(ours["ratio"]), float(theirs["ratio"])
        if (ratio > before * FACTOR) if lower else (ratio < before / FACTOR):
            falls.append(Fall(ours["suite"], ours["name"], ratio, before, lower))
    return falls


def unchecked(
    suites: Sequence[str], found: Sequence[Record], committed: Sequence[Record]
) -> list[str]:
    """Suites of which nothing was compared: a check that looks at nothing must not pass."""
    looked_at = {ours["suite"] for ours, _ in compared(found, committed)}
    return [suite for suite in suites if suite not in looked_at]


def both_times(first: Sequence[Fall], again: Sequence[Fall]) -> list[Fall]:
    """What had fallen and has again, as it was the second time."""
    keys = {fall.key for fall in first}
    return [fall for fall in again if fall.key in keys]
