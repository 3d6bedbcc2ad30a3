from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from celery import chain, chord, group
from celery.signals import before_task_publish
from memory_app import CREDIT, Bench, make_bench

from workers.billing_header import (
    HEADER,
    BillingHeader,
    bill_to,
    current_customer,
)
from workers.errors import CustomerRequired, NotMetered
from workers.task import MeteredTask


@pytest.fixture
def bench() -> Bench:
    return make_bench()


def customers(bench: Bench) -> list[str]:
    return [event.customer for event in bench.container.events]


def test_a_metered_task_without_a_customer_is_refused_at_submission(bench: Bench):
    with pytest.raises(CustomerRequired, match=r"fixed\.bill_to\(\"acme\"\)"):
        bench.app.tasks["fixed"].delay("x")
    assert bench.ran == []


def test_the_customer_is_named_in_apply_async(bench: Bench):
    bench.app.tasks["fixed"].apply_async(("x",), customer="acme")
    assert customers(bench) == ["acme"]


def test_the_customer_is_named_by_bill_to(bench: Bench):
    bench.app.tasks["fixed"].bill_to("acme").delay("x")
    assert customers(bench) == ["acme"]


def test_the_customer_is_named_by_the_context(bench: Bench):
    with bill_to("acme"):
        bench.app.tasks["fixed"].delay("x")
        with bill_to("globex"):
            bench.app.tasks["fixed"].delay("y")
        assert current_customer() == "acme"
    assert current_customer() is None
    assert customers(bench) == ["acme", "globex"]


def test_an_explicit_customer_wins_over_the_context(bench: Bench):
    with bill_to("acme"):
        bench.app.tasks["fixed"].apply_async(("x",), customer="globex")
    assert customers(bench) == ["globex"]


def test_a_customer_without_a_name_is_nobody(bench: Bench):
    with bill_to(""), pytest.raises(CustomerRequired):
        bench.app.tasks["fixed"].delay("x")


def test_what_an_eager_task_submits_is_billed_to_its_customer_not_to_its_callers(bench: Bench):
    @bench.app.task(shared=False, base=MeteredTask, sku="fixed", name="parent")
    def parent() -> None:
        bench.app.tasks["fixed"].delay("child")
        with bill_to("acme"):
            bench.app.tasks["fixed"].delay("another")

    with bill_to("acme"):
        parent.bill_to("globex").delay()
    assert customers(bench) == ["globex", "acme", "globex"]


@pytest.mark.parametrize("how", ["map", "starmap", "chunks"])
def test_a_metered_task_is_not_given_away_by_calling_it_as_a_function(bench: Bench, how: str):
    fixed = bench.app.tasks["fixed"]
    many = {
        "map": lambda: fixed.map(["a", "b"]),
        "starmap": lambda: fixed.starmap([("a",), ("b",)]),
        "chunks": lambda: fixed.chunks([("a",), ("b",)], 1),
    }[how]()
    with bill_to("acme"):
        result = many.apply_async()
    with pytest.raises(NotMetered, match="send a group"):
        result.get()
    assert bench.ran == []


def test_a_mapped_plain_task_may_call_a_metered_one_as_a_function(bench: Bench):
    @bench.app.task(shared=False, name="caller")
    def caller(word: str) -> str:
        return str(bench.app.tasks["fixed"](word))

    assert caller.map(["a", "b"]).apply_async().get() == ["a", "b"]
    assert bench.ran == ["a", "b"]
    assert bench.container.events == []


def test_an_eager_chain_is_billed_by_the_context(bench: Bench):
    # Celery applies the members of an eager chain one after another, outside of any task, so
    # there is nothing to inherit from; in a worker they inherit (test_canvas_live.py).
    fixed, plain = bench.app.tasks["fixed"], bench.app.tasks["plain"]
    with bill_to("acme"):
        chain(fixed.s("x"), plain.s(), fixed.si("z")).apply_async()
    assert customers(bench) == ["acme", "acme"]


def test_a_group_and_a_chord_bill_members_and_body(bench: Bench):
    fixed, plain = bench.app.tasks["fixed"], bench.app.tasks["plain"]
    with bill_to("acme"):
        group(fixed.s("a"), fixed.s("b")).apply_async()
        chord([fixed.s("c"), fixed.s("d")])(plain.s())
    assert customers(bench) == ["acme"] * 4


def test_metered_at_is_the_eta_if_there_is_one(bench: Bench):
    eta = datetime(2026, 11, 30, 23, 59, 59, 999_000, tzinfo=UTC)
    bench.app.tasks["fixed"].apply_async(("x",), customer="acme", eta=eta)
    assert bench.container.events[0].metered_at == eta


def test_metered_at_counts_a_countdown(bench: Bench):
    before = datetime.now(UTC) + timedelta(hours=1)
    bench.app.tasks["fixed"].apply_async(("x",), customer="acme", countdown=3600)
    stamped = bench.container.events[0].metered_at
    assert timedelta(seconds=-1) < stamped - before < timedelta(minutes=1)


def test_a_child_that_has_its_id_already_is_of_its_parents_instant(bench: Bench):
    """The next of a chain: its parent, killed and run again, submits it again under that id."""

    @bench.app.task(shared=False, base=MeteredTask, sku="fixed", name="parent")
    def parent() -> None:
        bench.app.tasks["fixed"].apply_async(("x",), task_id="next-of-the-chain")

    due = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=10)
    header = {HEADER: BillingHeader("acme", due).to_message()}
    for _ in range(2):
        parent.apply(task_id="parent", headers=header)
    children = [e for e in bench.container.events if e.task_id == "next-of-the-chain"]
    assert {event.metered_at for event in children} == {due}


def test_a_child_with_an_id_of_its_own_is_of_its_own_instant(bench: Bench):
    @bench.app.task(shared=False, base=MeteredTask, sku="fixed", name="parent")
    def parent() -> None:
        bench.app.tasks["fixed"].apply_async(("x",))

    before = datetime.now(UTC) - timedelta(seconds=1)
    header = {HEADER: BillingHeader("acme", before - timedelta(minutes=10)).to_message()}
    parent.apply(task_id="parent", headers=header)
    (child,) = (e for e in bench.container.events if e.task_id != "parent")
    assert child.metered_at > before


def test_a_naive_eta_is_read_in_the_apps_time_zone(bench: Bench):
    bench.app.conf.timezone = "Asia/Kolkata"
    bench.app.tasks["fixed"].apply_async(
        ("x",),
        customer="acme",
        eta=datetime(2026, 11, 30, 12, 0),  # noqa: DTZ001 - the case
    )
    assert bench.container.events[0].metered_at == datetime(2026, 11, 30, 6, 30, tzinfo=UTC)


def test_a_plain_call_is_not_a_run_and_not_metered(bench: Bench):
    assert bench.app.tasks["fixed"]("x") == "x"
    assert bench.ran == ["x"]
    assert bench.container.events == []


def test_a_metered_task_called_as_a_function_inside_another_is_part_of_that_one(bench: Bench):
    bench.app.tasks["calls_another"].bill_to("acme").delay()
    assert bench.ran == ["inner"]
    assert bench.lines == [("fixed", "succeeded", CREDIT)]


def test_arguments_are_masked_unless_the_task_shows_them(bench: Bench):
    seen = {}

    def remember(headers: dict[str, object] | None = None, **_: object) -> None:
        seen.update(headers or {})

    bench.app.conf.task_always_eager = False
    before_task_publish.connect(remember)
    try:
        bench.app.tasks["fixed"].bill_to("acme").delay("a secret")
    finally:
        before_task_publish.disconnect(remember)
    assert seen["billing"]["customer"] == "acme"
    assert "secret" not in str(seen)
    assert seen["argsrepr"] == "(…)"
