"""Every place where a process can be killed has its fault, and leased SKUs are in the load."""

from __future__ import annotations

import random

import pytest

from billing.core.failpoints import NAMES
from billing.core.sku import AdmissionPolicy
from lab.chaos import __main__ as command
from lab.chaos.app import BEAT_JOBS
from lab.chaos.catalogue import LEASED, LESSEES, PRICES
from lab.chaos.faults.beats import KilledSending
from lab.chaos.faults.registry import SPECS
from lab.chaos.kinds import KINDS, choose_one
from workers.beat_schedule import BEAT_SCHEDULE

ELSEWHERE = ("report.", "notice.", "seal.", "archive.", "restore.")
"""What is not on the way of a task: the tests of these kill them at their points."""
TASK = ("hold.", "body.", "settle.", "lease.", "slip.", "flush.")
POINTS = sorted(name for name in NAMES if not name.startswith(ELSEWHERE))


@pytest.mark.parametrize("point", POINTS)
def test_every_fail_point_on_a_tasks_way_has_its_deaths(point: str):
    who = ("child", "worker") if point.startswith(TASK) else (None,)
    for each in who:
        dies = [n for n in SPECS if n.endswith(f"@{point}") and (not each or n.startswith(each))]
        assert len(dies) == 1


def test_every_job_of_beats_is_one_that_it_dies_in():
    assert set(BEAT_JOBS) == {entry["task"] for entry in BEAT_SCHEDULE.values()}
    assert len(KilledSending.places) == 2 * len(BEAT_JOBS)


def test_the_forms_are_made_of_faults_that_there_are():
    assert set(command._QUICK_FAULTS) <= set(SPECS)
    assert set(command._SHORT_FAULTS) <= set(SPECS)


def test_leased_skus_cost_what_their_twins_do():
    assert LEASED
    for sku in LEASED:
        assert sku.admission is AdmissionPolicy.LEASED
        assert PRICES[sku.id] == PRICES[sku.id.removeprefix("leased-")]


def test_a_load_has_both_and_can_be_of_leased_ones_alone():
    choose = random.Random(1)
    both = {choose_one(choose, leased_only=False)[0] for _ in range(2_000)}
    assert both == set(KINDS)
    for _ in range(200):
        name, kind, customer = choose_one(choose, leased_only=True)
        assert kind.leased
        assert kind is KINDS[name]
        assert customer in LESSEES


def test_who_buys_exactly_leases_nothing():
    choose = random.Random(2)
    chosen = [choose_one(choose, leased_only=False) for _ in range(500)]
    assert all((customer in LESSEES) is kind.leased for _, kind, customer in chosen)
