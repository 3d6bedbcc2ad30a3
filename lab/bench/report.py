"""Figures: what was measured, its baseline, and how both are told. Pure.

Every figure is a ratio. A repetition measures the thing and its baseline one right after the other
and gives one ratio; told is the median of the ratios, not the ratio of the medians, so that
whatever else the machine did meanwhile touched both sides of each.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

MIN_REPETITIONS: Final = 5
"""Fewer say nothing about the spread."""

BUSY: Final = 0.5
"""Load per core from which other work on the machine is called a caveat."""

_SHARED: Final = (
    "Driver, worker and servers share this machine's cores, over loopback: ratios travel to other "
    "machines better than values do."
)
_LEGEND: Final = (
    "Median of {least} or more interleaved repetitions, lowest and highest below it. "
    "Ratio: value ÷ baseline, repetition by repetition."
)
_DIGITS: Final = 3
_STORED_DIGITS: Final = 6


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of the repetitions, the lowest and the highest."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a figure is to reach: bounds of its median ratio and of its median value."""

    ratio_at_least: float | None = None
    ratio_at_most: float | None = None
    value_at_least: float | None = None
    value_at_most: float | None = None

    def told(self, unit: str) -> str:
        """For people: ``ratio ≥ 0.7, ≥ 10,000 rows/s``."""
        bounds = (
            ("ratio ≥ ", self.ratio_at_least, ""),
            ("ratio ≤ ", self.ratio_at_most, ""),
            ("≥ ", self.value_at_least, f" {unit}"),
            ("≤ ", self.value_at_most, f" {unit}"),
        )
        return ", ".join(
            f"{before}{bound:,g}{after}" for before, bound, after in bounds if bound is not None
        )

    def met(self, figure: Figure) -> bool:
        """Whether a figure reaches all of it."""
        ratio, value = figure.ratio.median, figure.value.median
        return (
            (self.ratio_at_least is None or ratio >= self.ratio_at_least)
            and (self.ratio_at_most is None or ratio <= self.ratio_at_most)
            and (self.value_at_least is None or value >= self.value_at_least)
            and (self.value_at_most is None or value <= self.value_at_most)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the report. ``value`` and ``baseline`` are in ``unit``.

    ``against`` says what the baseline is; ``ratio`` is value divided by baseline, repetition by
    repetition. ``goal`` is None where nothing is asked of it.
    """

    suite: str
    name: str
    unit: str
    against: str
    repetitions: int
    value: Spread
    baseline: Spread
    ratio: Spread
    goal: Goal | None = None

    @property
    def met(self) -> bool | None:
        """Whether it reaches its goal; None where it has none."""
        return None if self.goal is None else self.goal.met(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What the figures were measured on. ``loads``: load averages before and after, one minute."""

    cores: int
    model: str
    versions: dict[str, str]
    settings: dict[str, str]
    loads: tuple[float, float]


def spread(samples: Sequence[float]) -> Spread:
    """Median, lowest and highest.

    Raises:
        ValueError: There are none, or one is not a number.
    """
    if not samples or not all(math.isfinite(sample) for sample in samples):
        raise ValueError(f"no spread of {list(samples)!r:.200}")
    return Spread(statistics.median(samples), min(samples), max(samples))


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least ``percent`` of them do not pass (nearest rank).

    Args:
        samples: In any order.
        percent: More than 0, at most 100.

    Raises:
        ValueError: There are no samples, or no such percentile.
    """
    if not samples or not 0 < percent <= 100:  # noqa: PLR2004 - per cent
        raise ValueError(f"no {percent}th percentile of {len(samples)} samples")
    return sorted(samples)[math.ceil(len(samples) * percent / 100) - 1]


def compare(
    suite: str,
    name: str,
    unit: str,
    against: str,
    pairs: Sequence[tuple[float, float]],
    goal: Goal | None = None,
) -> Figure:
    """The figure of some repetitions.

    Args:
        suite: Which suite it belongs to.
        name: What was measured.
        unit: Of both numbers of each pair.
        against: What the baseline is.
        pairs: Value and baseline of each repetition, both more than zero.
        goal: What it is to reach.

    Raises:
        ValueError: There are fewer than ``MIN_REPETITIONS``, or a baseline is zero.
    """
    if len(pairs) < MIN_REPETITIONS:
        raise ValueError(f"{suite}, {name}: {len(pairs)} repetitions; {MIN_REPETITIONS} are needed")
    if any(baseline <= 0 for _, baseline in pairs):
        raise ValueError(f"{suite}, {name}: a baseline of zero or less: {pairs!r:.200}")
    return Figure(
        suite=suite,
        name=name,
        unit=unit,
        against=against,
        repetitions=len(pairs),
        value=spread([value for value, _ in pairs]),
        baseline=spread([baseline for _, baseline in pairs]),
        ratio=spread([value / baseline for value, baseline in pairs]),
        goal=goal,
    )


def caveats(context: Context, *, quick: bool) -> list[str]:
    """What a reader has to know before quoting a figure."""
    told = [_SHARED]
    before, after = context.loads
    if max(before, after) / context.cores >= BUSY:
        told.append(
            f"Load average {before:.1f} before and {after:.1f} after, on {context.cores} cores. "
            "The load before is other work: values are worse than on an idle machine, and the "
            "spread is wider."
            if before / context.cores >= BUSY
            else f"Load average {before:.1f} before and {after:.1f} after, on {context.cores} "
            "cores; the rise is this run."
        )
    if quick:
        told.append("--quick: short rounds, to see that it works; do not quote these figures.")
    return told


def records(figures: Iterable[Figure]) -> list[dict[str, object]]:
    """The figures for machines: medians, and the spread of each beside them."""
    return [
        {
            "suite": figure.suite,
            "name": figure.name,
            "value": _stored(figure.value.median),
            "unit": figure.unit,
            "baseline": _stored(figure.baseline.median),
            "ratio": _stored(figure.ratio.median),
            "against": figure.against,
            "target": figure.goal.told(figure.unit) if figure.goal else None,
            "met": figure.met,
            "goal": asdict(figure.goal) if figure.goal else None,
            "repetitions": figure.repetitions,
            "value_range": [_stored(figure.value.low), _stored(figure.value.high)],
            "baseline_range": [_stored(figure.baseline.low), _stored(figure.baseline.high)],
            "ratio_range": [_stored(figure.ratio.low), _stored(figure.ratio.high)],
        }
        for figure in figures
    ]


def from_records(told: Iterable[Mapping[str, Any]]) -> list[Figure]:
    """The figures of ``records``, to the digits that these keep.

    Args:
        told: As read from a file of an earlier run.

    Raises:
        KeyError: They are of a version that told less.
    """

    def stored(record: Mapping[str, Any], name: str) -> Spread:
        low, high = record[f"{name}_range"]
        return Spread(record[name], low, high)

    return [
        Figure(
            suite=record["suite"],
            name=record["name"],
            unit=record["unit"],
            against=record["against"],
            repetitions=record["repetitions"],
            value=stored(record, "value"),
            baseline=stored(record, "baseline"),
            ratio=stored(record, "ratio"),
            goal=Goal(**record["goal"]) if record["goal"] else None,
        )
        for record in told
    ]


def as_json(figures: Iterable[Figure]) -> str:
    """``records`` as a JSON text that ends with a newline."""
    return json.dumps(records(figures), indent=2, allow_nan=False) + "\n"


def table(figures: Sequence[Figure], context: Context, notes: Sequence[str]) -> RenderableType:
    """The report for people, made to be read at 100 columns.

    Args:
        figures: In the order they are shown.
        context: Machine, versions and settings.
        notes: Caveats.
    """
    shown = Table(box=box.SIMPLE_HEAD, title="Weighbridge benchmarks", title_justify="left")
    for heading in ("suite", "figure"):
        shown.add_column(heading, no_wrap=heading == "suite")
    shown.add_column("value", justify="right", no_wrap=True)
    shown.add_column("unit", no_wrap=True)
    shown.add_column("baseline", justify="right", no_wrap=True)
    shown.add_column("ratio", justify="right", no_wrap=True)
    shown.add_column("target", no_wrap=True)
    last = ""
    for figure in figures:
        if last and figure.suite != last:
            shown.add_section()
        shown.add_row(
            "" if figure.suite == last else figure.suite,
            _two_lines(figure.name, f"against {figure.against}"),
            _cell(figure.value),
            figure.unit,
            _cell(figure.baseline),
            _cell(figure.ratio, style="bold"),
            _target(figure),
        )
        last = figure.suite
    return Group(shown, *(Text(line) for line in _footnotes(figures, context, notes)))


def number(value: float) -> str:
    """A measured number for people: three significant digits, thousands apart."""
    if value == 0:
        return "0"
    decimals = _DIGITS - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, decimals):,.{max(decimals, 0)}f}"


def _footnotes(figures: Sequence[Figure], context: Context, notes: Sequence[str]) -> list[str]:
    least = min((figure.repetitions for figure in figures), default=0)
    versions = ", ".join(f"{name} {version}" for name, version in context.versions.items())
    settings = ", ".join(f"{name} {value}" for name, value in context.settings.items())
    return [
        _LEGEND.format(least=least),
        f"Machine: {context.cores} cores, {context.model}",
        f"Versions: {versions}",
        f"Servers: {settings}",
        "Caveats:",
        *(f"  - {note}" for note in notes),
    ]


def _cell(of: Spread, style: str = "") -> Text:
    return _two_lines(number(of.median), f"{number(of.low)}-{number(of.high)}", style)


def _target(figure: Figure) -> Text:
    if figure.goal is None:
        return Text("-", style="dim")
    word, style = ("met", "green") if figure.met else ("NOT MET", "bold red")
    bounds = figure.goal.told(figure.unit).split(", ")
    return Text("\n").join(
        [Text(word, style=style), *(Text(bound, style="dim") for bound in bounds)]
    )


def _two_lines(first: str, second: str, style: str = "") -> Text:
    return Text.assemble((first, style), "\n", (second, "dim"))


def _stored(value: float) -> float:
    return float(f"{value:.{_STORED_DIGITS}g}")
