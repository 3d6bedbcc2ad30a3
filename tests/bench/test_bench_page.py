"""The page of a run: every figure in a table, every suite with a plot that can be read."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from lab.bench import run
from lab.bench.page import page, plot, suites_of
from lab.bench.report import Context, Figure, Goal, compare

CONTEXT = Context(
    cores=2, model="Example CPU", versions={"Python": "3.11"}, settings={"fsync": "on"},
    loads=(0.1, 1.9),
)  # fmt: skip
PAIRS = [(10.0, 5.0), (12.0, 4.0), (8.0, 8.0), (11.0, 10.0), (9.0, 3.0)]
SVG = "{http://www.w3.org/2000/svg}"


def figure(suite: str = "quota", name: str = "reserve <p50>", goal: Goal | None = None) -> Figure:
    return compare(suite, name, "ms", "PING p50", PAIRS, goal)


def test_suites_are_told_apart_in_their_order() -> None:
    found = suites_of([figure(), figure(name="settle"), figure(suite="ingest")])
    assert [(suite, len(own)) for suite, own in found] == [("quota", 2), ("ingest", 1)]


def test_a_plot_has_a_bar_per_figure_and_a_mark_per_goal() -> None:
    goal = Goal(ratio_at_least=3)
    tree = ET.fromstring(plot("quota", [figure(goal=goal), figure(name="settle")]))
    bars = [each for each in tree.iter(f"{SVG}rect") if each.get("x")]
    marks = [each for each in tree.iter(f"{SVG}line") if each.get("stroke-dasharray")]
    texts = [each.text for each in tree.iter(f"{SVG}text")]
    assert (len(bars), len(marks)) == (2, 1)
    assert "reserve <p50>" in texts
    # A goal beyond every bar still lies within the picture.
    assert all(float(each.get("x1", "0")) < 760 for each in marks)


def test_the_page_names_machine_figures_and_what_was_missed() -> None:
    goal = Goal(ratio_at_least=3)
    notes = ["a caveat", "ingest: of its own"]
    figures = [figure(goal=goal), figure(suite="ingest")]
    text = page(figures, CONTEXT, notes, "2026-11-21", {"ingest": "How rows go in."})
    assert "2 cores, Example CPU" in text
    general, of_quota, of_ingest = text.split("\n## ")
    assert "- a caveat" in general
    assert "of its own" not in general + of_quota
    assert "How rows go in." in of_ingest
    assert "- ingest: of its own" in of_ingest
    assert "**Not met: 1 of 1 goals:** quota, reserve <p50>" in text
    assert "![ingest](benchmarks-ingest.svg)" in text
    assert "| reserve <p50> | 10.0 | ms | PING p50 | 5.00 | **2.00** (1.00-3.00) |" in text


def test_ratios_far_apart_are_drawn_on_a_logarithmic_scale_and_it_is_said() -> None:
    far = compare("leases", "admissions", "tasks/s", "reserve", [(600.0, 5.0)] * 5)
    near = compare("leases", "whole tasks", "tasks/s", "exact", [(6.0, 5.0)] * 5)
    text = plot("leases", [far, near])
    tree = ET.fromstring(text)
    large, small = (
        float(each.get("width", "0")) for each in tree.iter(f"{SVG}rect") if each.get("x")
    )
    assert "logarithmic" in text
    assert 0 < small < large
    assert small > large / 20
    assert "logarithmic" not in plot("leases", [near])


def test_every_suite_says_what_it_does() -> None:
    methods = run._methods()
    assert set(methods) == {*run.SUITES, *run.ON_REQUEST}
    assert all(len(text) > 100 and "Suite" not in text.split(".")[0] for text in methods.values())
