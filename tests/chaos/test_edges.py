"""The edges of the calendar that a run crosses."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from lab.chaos.faults.clocks import last_change, last_month_edge
from lab.chaos.faults.registry import SPECS


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("now", "begins", "ends"),
    [
        ("2026-11-21T18:47", "2026-03-29T01:00", "2026-10-25T01:00"),
        ("2026-10-25T00:59", "2026-03-29T01:00", "2025-10-26T01:00"),
        ("2026-03-29T01:00", "2026-03-29T01:00", "2025-10-26T01:00"),
    ],
)
def test_the_last_changes_of_berlins_clocks(now: str, begins: str, ends: str):
    assert last_change(at(now), forwards=True) == at(begins)
    assert last_change(at(now), forwards=False) == at(ends)


def test_the_last_edge_of_a_month():
    assert last_month_edge(at("2026-11-21T18:47")) == at("2026-11-01T00:00")


def test_every_fault_says_what_it_is():
    assert all(spec.about and spec.kind.name == name for name, spec in SPECS.items())
