"""Any order of deaths, repeats and delays between a task and the log leaves one line per fact.

The machine of ``test_meter_machine`` goes on here: its outbox, its direct publishes and its spool
are shipped by relays that die at every step, lie in a queue that delivers late, out of order and
more than once, and are logged by consumers that die before and after their COMMIT.
5,000 steps are taken, and counted;
``make test ARGS="tests/metering/test_pipeline_machine.py --model-steps 200000"`` takes more.
"""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule, run_state_machine_as_test
from test_meter_machine import BilledTasks

from billing.core.reservation import HoldState, Settlement
from billing.core.usage_event import UsageEvent
from billing.core.usage_event_json import from_wire
from billing.quota.memory_store import MemoryQuotaStore

STEPS_AT_ONCE = 50
STEPS_OF_A_LIFE = 40
"""Less than the most: some lives are cut short."""
RELAY_DIES = (None, "before publishing", "before the confirm", "before removing")
CONSUMER_DIES = (None, "before COMMIT", "before the acknowledgement")


class Shipped(BilledTasks):
    """The same tasks, and everything between their settlement and the log."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: list[bytes] = []
        self.log: dict[UUID, UsageEvent] = {}
        self.conflicts: list[UsageEvent] = []
        self.taken: dict[int, int] = {}

    @precondition(lambda self: self._waiting())
    @rule(data=st.data(), dies=st.sampled_from(RELAY_DIES))
    def a_relay_ships_a_batch(self, data: st.DataObject, dies: str | None):
        waiting = self._waiting()
        size = data.draw(st.integers(1, len(waiting)))
        batch = waiting[:size]
        if dies == "before publishing":
            return
        # Before the confirm: RabbitMQ may have taken any part of the batch.
        reached = data.draw(st.integers(0, size)) if dies == "before the confirm" else size
        self.queue += [event.to_wire() for event in batch[:reached]]
        if dies is None:
            self._remove(batch)

    @precondition(lambda self: self.queue)
    @rule(data=st.data(), dies=st.sampled_from(CONSUMER_DIES))
    def a_consumer_takes_some_in_any_order(self, data: st.DataObject, dies: str | None):
        places = st.integers(0, len(self.queue) - 1)
        taken = data.draw(st.lists(places, min_size=1, max_size=8, unique=True))
        repeats = data.draw(st.integers(1, 5))
        if dies == "before COMMIT":
            return
        self._commit([self.queue[place] for place in taken] * repeats)
        if dies is None:
            self.queue = [body for place, body in enumerate(self.queue) if place not in taken]

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def the_broker_delivers_one_again_later(self, data: st.DataObject):
        self.queue.append(data.draw(st.sampled_from(self.queue)))

    def _sources(self) -> list[list[UsageEvent]]:
        return [self.world.outbox, self.world.publisher.events, self.world.spool.events]

    def _waiting(self) -> list[UsageEvent]:
        """What was told and not removed by a relay; each source keeps its order."""
        found = []
        for source in self._sources():
            found += source[self.taken.get(id(source), 0) :]
        return found

    def _remove(self, batch: list[UsageEvent]) -> None:
        left = len(batch)
        for source in self._sources():
            gone = self.taken.get(id(source), 0)
            step = min(left, len(source) - gone)
            # The lists stay whole, for they are what the other machine's invariants look at.
            self.taken[id(source)] = gone + step
            left -= step

    def _commit(self, bodies: list[bytes]) -> None:
        for body in bodies:
            event = from_wire(body)
            known = self.log.setdefault(event.id, event)
            if known.fingerprint() != event.fingerprint():
                self.conflicts.append(event)

    @invariant()
    def nothing_is_in_the_log_that_nobody_told(self):
        assert set(self.log) <= {event.id for event in self._tellings()}

    @invariant()
    def no_two_tellings_conflict(self):
        assert self.conflicts == []

    @invariant()
    def what_is_told_and_not_logged_is_on_its_way(self):
        on_the_way = {event.id for event in self._waiting()}
        on_the_way |= {from_wire(body).id for body in self.queue}
        assert {event.id for event in self._tellings()} - set(self.log) <= on_the_way

    def teardown(self):
        super().teardown()
        batch = self._waiting()
        self.queue += [event.to_wire() for event in batch]
        self._remove(batch)
        self._commit(self.queue)
        assert self._settled() == self._counted(self.log.values())
        assert set(self.log) == {event.id for event in self._tellings()}
        assert self.conflicts == []


class Counted(Shipped):
    """As ``Shipped``; how many steps all lives of the class took together."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        # Invariants are asked for once before the first step, too.
        type(self).steps -= 1

    @invariant()
    def a_step_was_taken(self):
        type(self).steps += 1


def take(machine: type[Shipped], lives: int, phases: tuple[Phase, ...] = tuple(Phase)) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=lives,
            stateful_step_count=STEPS_AT_ONCE,
            deadline=None,
            phases=phases,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


# Each second of it is as good as the last; 200,000 steps take minutes.
@pytest.mark.timeout(0)
def test_a_task_is_one_line_per_fact_whatever_dies_repeats_or_comes_late(
    request: pytest.FixtureRequest,
):
    wanted = request.config.getoption("--model-steps")

    class Lives(Counted):
        pass

    take(Lives, lives=-(-wanted // STEPS_OF_A_LIFE))
    assert Lives.steps >= wanted


def a_settled_hold_is_settled_again(monkeypatch: pytest.MonkeyPatch) -> type[Shipped]:
    right = MemoryQuotaStore.settle

    def wrong(
        self: MemoryQuotaStore, customer: str, task_id: str, *rest: object, **more: object
    ) -> Settlement:
        hold = self._holds.get((customer, task_id))
        if hold is not None and hold.state is HoldState.SETTLED:
            hold.state = HoldState.EXPIRED
        return right(self, customer, task_id, *rest, **more)

    monkeypatch.setattr(MemoryQuotaStore, "settle", wrong)
    return Shipped


def a_release_keeps_the_credits(monkeypatch: pytest.MonkeyPatch) -> type[Shipped]:
    monkeypatch.setattr(MemoryQuotaStore, "_close", lambda _self, _hold, _account: None)
    return Shipped


def a_relay_removes_before_it_publishes(_monkeypatch: pytest.MonkeyPatch) -> type[Shipped]:
    class Hasty(Shipped):
        @precondition(lambda self: self._waiting())
        @rule()
        def a_relay_dies_having_removed(self) -> None:
            self._remove(self._waiting()[:1])

    return Hasty


def a_log_takes_the_second_telling_for_another(_monkeypatch: pytest.MonkeyPatch) -> type[Shipped]:
    class Forgetful(Shipped):
        def _commit(self, bodies: list[bytes]) -> None:
            for body in bodies:
                event = from_wire(body)
                taken = event.id in self.log
                self.log[uuid4() if taken else event.id] = event

    return Forgetful


@pytest.mark.parametrize(
    "plant",
    [
        a_settled_hold_is_settled_again,
        a_release_keeps_the_credits,
        a_relay_removes_before_it_publishes,
        a_log_takes_the_second_telling_for_another,
    ],
)
def test_a_planted_bug_is_found(
    plant: Callable[[pytest.MonkeyPatch], type[Shipped]], monkeypatch: pytest.MonkeyPatch
):
    machine = plant(monkeypatch)
    # Found is enough here; the shortest way to it is for who mends it.
    with pytest.raises((AssertionError, ExceptionGroup)):
        take(machine, lives=125, phases=(Phase.generate,))
