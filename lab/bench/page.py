"""The page of a run: ``docs/benchmarks.md`` and a plot per suite, made from its figures. Pure.

A plot shows every figure's ratio against what it is to reach: bars beside a line, on one scale of
its own, so that a page can be read without its numbers. Where the largest ratio would leave nothing
to see of the smallest, the scale is logarithmic, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Final
from xml.sax.saxutils import escape

from lab.bench.report import Context, Figure, number

_WIDTH: Final = 780
_LABELS: Final = 330
_BARS: Final = 360
_SPAN: Final = 30
"""How many times the smallest ratio the largest may be on an even scale."""
_ROW: Final = 34
_TOP: Final = 40
_COLOURS: Final = {True: "#2e7d32", False: "#c62828", None: "#546e7a"}


def suites_of(figures: Iterable[Figure]) -> list[tuple[str, list[Figure]]]:
    """The figures by suite, in the order they were measured."""
    return [(suite, list(own)) for suite, own in groupby(figures, key=lambda one: one.suite)]


def plot(suite: str, figures: Sequence[Figure]) -> str:
    """An SVG of one suite: median ratios as bars, their spread as whiskers, goals as marks."""
    place, kind = _scale(figures)
    height = _TOP + _ROW * len(figures) + 20
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
            f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12" '
            f'role="img" aria-label="{escape(suite)}: ratios against their baselines">'
        ),
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        (
            f'<text x="10" y="22" font-size="14" font-weight="bold">'
            f"{escape(suite)}: value ÷ baseline{kind}</text>"
        ),
    ]
    for index, figure in enumerate(figures):
        parts += _bar(figure, _TOP + _ROW * index, place)
    return "\n".join([*parts, "</svg>", ""])


def _scale(figures: Sequence[Figure]) -> tuple[Callable[[float], float], str]:
    """How far from the labels a ratio is drawn, and what to say of it."""
    drawn = [_bound(figure) for figure in figures] + [figure.ratio.high for figure in figures]
    drawn += [figure.ratio.low for figure in figures]
    given = [each for each in drawn if each]
    longest, shortest = max(given, default=1.0), min(given, default=1.0)
    if longest <= shortest * _SPAN:
        return lambda ratio: ratio * _BARS / longest, ""
    lowest = shortest / 2

    def place(ratio: float) -> float:
        return max(0.0, math.log(max(ratio, lowest) / lowest) / math.log(longest / lowest)) * _BARS

    return place, ", logarithmic"


def _bar(figure: Figure, top: int, place: Callable[[float], float]) -> list[str]:
    middle = top + _ROW // 2
    width = place(figure.ratio.median)
    low, high = (_LABELS + place(bound) for bound in (figure.ratio.low, figure.ratio.high))
    parts = [
        f'<text x="{_LABELS - 8}" y="{middle + 4}" text-anchor="end">{escape(figure.name)}</text>',
        (
            f'<rect x="{_LABELS}" y="{middle - 8}" width="{width:.1f}" height="16" '
            f'fill="{_COLOURS[figure.met]}"/>'
        ),
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}" stroke="#000000"/>',
        (
            f'<text x="{max(high, _LABELS + width) + 6:.1f}" y="{middle + 4}">'
            f"{number(figure.ratio.median)}</text>"
        ),
    ]
    bound = _bound(figure)
    if bound is not None:
        at = _LABELS + place(bound)
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{middle - 13}" y2="{middle + 13}" '
            'stroke="#000000" stroke-width="2" stroke-dasharray="4 2"/>'
        )
    return parts


def _bound(figure: Figure) -> float | None:
    goal = figure.goal
    if goal is None:
        return None
    return goal.ratio_at_least if goal.ratio_at_least is not None else goal.ratio_at_most


def page(
    figures: Sequence[Figure],
    context: Context,
    notes: Sequence[str],
    when: str,
    methods: Mapping[str, str],
) -> str:
    """The page, in Markdown.

    Args:
        figures: In the order they are shown.
        context: Machine, versions and settings.
        notes: Caveats.
        when: The day of the run, for people.
        methods: What each suite does, by its name.
    """
    versions = ", ".join(f"{name} {version}" for name, version in context.versions.items())
    settings = ", ".join(f"{name} {value}" for name, value in context.settings.items())
    goals = sum(figure.met is not None for figure in figures)
    missed = [figure for figure in figures if figure.met is False]
    suites = [suite for suite, _ in suites_of(figures)]
    lines = [
        "# Benchmarks",
        "",
        (
            f"Made by `make bench ARGS=--page` on {when}; how it measures: "
            "[lab/bench/README.md](../lab/bench/README.md)."
        ),
        "",
        f"- Machine: {context.cores} cores, {context.model}",
        f"- Versions: {versions}",
        f"- Servers: {settings}",
        f"- Load before and after: {context.loads[0]:.1f} and {context.loads[1]:.1f}",
        "",
        (
            "Every figure is a ratio against a baseline of the same run, repetition by repetition, "
            "the two in turns; told are the median and, in brackets, the lowest and highest. "
            "Ratios travel to other machines, values do not."
        ),
        "",
        "Caveats:",
        "",
        *(f"- {note}" for note in notes if not any(is_of(note, each) for each in suites)),
        "",
    ]
    if missed:
        lines += [
            f"**Not met: {len(missed)} of {goals} goals:** "
            + "; ".join(f"{figure.suite}, {figure.name}" for figure in missed)
            + ". What was tried is told in [decisions](decisions/).",
            "",
        ]
    for suite, own in suites_of(figures):
        lines += [f"## {suite}", "", methods.get(suite, ""), ""]
        lines += [f"![{suite}](benchmarks-{suite}.svg)", "", *_table(own), ""]
        lines += [f"- {note}" for note in notes if is_of(note, suite)] + [""]
    return "\n".join(lines)


def is_of(note: str, suite: str) -> bool:
    """Whether a caveat is of one suite; such begin with its name."""
    return note.startswith((f"{suite}:", f"{suite},"))


def _table(figures: Sequence[Figure]) -> list[str]:
    return [
        "| figure | value | unit | against | baseline | ratio | target | met |",
        "|---|---:|---|---|---:|---:|---|---|",
        *(
            f"| {figure.name} | {number(figure.value.median)} | {figure.unit} | {figure.against} | "
            f"{number(figure.baseline.median)} | **{number(figure.ratio.median)}** "
            f"({number(figure.ratio.low)}-{number(figure.ratio.high)}) | "
            f"{figure.goal.told(figure.unit) if figure.goal else '-'} | {_MET[figure.met]} |"
            for figure in figures
        ),
    ]


_MET: Final = {True: "yes", False: "**no**", None: "-"}
