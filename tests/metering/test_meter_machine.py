"""Any order of deliveries, failures, kills and lost answers leaves the same books.

Each step may be killed before or after any one call that leaves the process, or have one answer
lost; tasks are delivered again, run twice at once, expire, and are ended by the main process too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from meter_fakes import (
    CREDIT,
    HOLD_TTL_SECONDS,
    Died,
    Faults,
    World,
    make_facts,
    make_measured,
    make_sku,
)

from billing.core.admission import Admission, TaskFacts
from billing.core.errors import QuotaUnavailable
from billing.core.reservation import ReleaseCause
from billing.core.sku import FailurePolicy, UnavailablePolicy
from billing.core.usage_event import Outcome, UsageEvent
from billing.metering.usage_recorder import UsageRecorder

CHARGE = FailurePolicy.CHARGE
SKUS = (
    make_sku("fixed", price=2 * CREDIT),
    make_sku("fixed-charged", failure_policy=CHARGE),
    make_measured("measured", hold=3),
    make_measured("measured-charged", hold=3, failure_policy=CHARGE),
    make_measured(
        "allowed", hold=2, unavailable_policy=UnavailablePolicy.ALLOW, allow_limit=2,
        failure_policy=CHARGE,
    ),
    make_sku("dear", price=15 * CREDIT),
)  # fmt: skip
TASKS = st.integers(0, len(SKUS) - 1)
QUANTITIES = st.integers(0, 6)
PLACES = ("reserve", "settle", "release", "append", "hold", "refresh", "publish", "journal")
FAULTS = st.none() | st.tuples(
    st.sampled_from(PLACES), st.sampled_from(("before", "after", "die before", "die after"))
)
Fault = tuple[str, str] | None


@dataclass
class Run:
    admission: Admission
    recorder: UsageRecorder


def facts_of(number: int) -> TaskFacts:
    return make_facts(f"task-{number}")


class BilledTasks(RuleBasedStateMachine):
    """One customer, six tasks of six SKUs, and a worker that may die at any instant."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(*SKUS, credits=20)
        self.runs: list[Run] = []
        self.admitted: set[str] = set()
        self.measured: Counter[str] = Counter()

    @rule(number=TASKS, is_told=st.booleans(), fault=FAULTS)
    def a_task_is_delivered(self, number: int, is_told: bool, fault: Fault):
        def deliver() -> None:
            meter, sku = self.world.meter, SKUS[number]
            admission = meter.admit(facts_of(number), sku.id, None)
            if admission.admitted:
                self.admitted.add(admission.facts.task_id)
                self.runs.append(Run(admission, meter.recorder(sku)))
            elif is_told:
                meter.record_denial(admission)

        self._step(deliver, fault)

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), quantity=QUANTITIES)
    def a_body_records(self, data: st.DataObject, quantity: int):
        run = data.draw(st.sampled_from(self.runs))
        if run.admission.sku.id.startswith(("fixed", "dear")):
            run.recorder.record(quantity=1)
        else:
            # The same measure has the same cost, as of a body that does the same again.
            run.recorder.record(quantity=quantity, cost_micros=3 * quantity)

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), fault=FAULTS)
    def a_run_succeeds(self, data: st.DataObject, fault: Fault):
        run = self._end(data)
        self._step(lambda: self.world.meter.settle(run.admission, run.recorder), fault)

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), cause=st.sampled_from(ReleaseCause), fault=FAULTS)
    def a_run_fails(self, data: st.DataObject, cause: ReleaseCause, fault: Fault):
        run = self._end(data)
        self._step(lambda: self.world.meter.fail(run.admission, run.recorder, cause), fault)

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def a_child_vanishes(self, data: st.DataObject):
        self._end(data)

    @rule(
        number=TASKS,
        cause=st.sampled_from([ReleaseCause.WORKER_LOST, ReleaseCause.HARD_TIME_LIMIT]),
        fault=FAULTS,
    )
    def the_main_process_ends_a_run(self, number: int, cause: ReleaseCause, fault: Fault):
        facts, sku = facts_of(number), SKUS[number].id
        self._step(lambda: self.world.meter.lost(facts, sku, cause), fault)

    @rule(seconds=st.sampled_from([1, HOLD_TTL_SECONDS]))
    def time_passes_and_holds_are_swept(self, seconds: int):
        self.world.clock.advance(timedelta(seconds=seconds))
        self.world.memory.expire(100)

    @precondition(lambda self: self.world.memory.account("acme"))
    @rule(credits=st.integers(1, 5))
    def credits_are_granted(self, credits: int):  # noqa: A002 - the word of the field
        self.world.books.grant("acme", credits * CREDIT)

    def _end(self, data: st.DataObject) -> Run:
        return self.runs.pop(data.draw(st.integers(0, len(self.runs) - 1)))

    def _step(self, work: Callable[[], object], fault: Fault) -> None:
        world = self.world
        places: dict[str, Faults] = {
            "refresh": world.books.faults,
            "publish": world.publisher.faults,
            "journal": world.journal.faults,
        }
        if fault:
            place, when = fault
            verb = "append" if place == "journal" else place
            places.get(place, world.quota.faults).plan(verb, when)
        uncounted = self._uncounted()
        may_be_uncounted = world.memory.account("acme") is None
        try:
            work()
        except Died:
            # Every run of the process dies with it; their messages come again, or not.
            self.runs.clear()
            world.meter = world.another_process()
        except QuotaUnavailable:
            pass  # `lost` says so; the hold expires
        for faults in (world.quota.faults, *places.values()):
            faults.forget()
        assert may_be_uncounted or self._uncounted() == uncounted

    def _uncounted(self) -> int:
        """Lines that cost something and that no balance was told of: there was none."""
        return sum(1 for line in self._lines() if line.amount_microcredits and not line.quota_epoch)

    def _tellings(self) -> Iterator[UsageEvent]:
        world = self.world
        return chain(world.outbox, world.publisher.events, world.spool.events)

    def _lines(self) -> list[UsageEvent]:
        """What the log makes of it: one line per id."""
        return list({event.id: event for event in self._tellings()}.values())

    @invariant()
    def the_account_is_its_parts(self):
        account = self.world.memory.account("acme")
        if account is None:
            return
        holds = self.world.memory.open_holds("acme")
        parts = account.settled_microcredits + account.held_microcredits
        assert account.granted_microcredits == self.world.books.granted["acme"]
        assert account.available_microcredits == account.granted_microcredits - parts
        assert account.available_microcredits >= 0
        assert account.held_microcredits == sum(hold.held_microcredits for hold in holds)

    @invariant()
    def what_was_settled_is_what_the_lines_say(self):
        assert self._settled() == self._counted(self._lines())

    def _settled(self) -> int:
        account = self.world.memory.account("acme")
        return account.settled_microcredits if account else 0

    def _counted(self, lines: Iterable[UsageEvent]) -> int:
        """What of these lines a balance was told of: the others (epoch 0) it is told by the log."""
        return sum(line.amount_microcredits for line in lines if line.quota_epoch)

    @invariant()
    def a_task_is_billed_at_most_once(self):
        billed = Counter(
            line.task_id
            for line in self._lines()
            if not line.line.startswith(("denied:", "failed:"))
        )
        assert set(billed.values()) <= {1}
        assert set(billed) <= self.admitted

    @invariant()
    def refusals_and_releases_are_free(self):
        for line in self._lines():
            if line.outcome is Outcome.DENIED or line.line.startswith("failed:"):
                assert line.amount_microcredits == line.quantity == 0

    @invariant()
    def what_was_charged_and_fell_short_is_what_was_asked(self):
        prices = {sku.id: sku.prices[0].unit_price_microcredits for sku in SKUS}
        for line in self._lines():
            asked = line.amount_microcredits + line.shortfall_microcredits
            assert asked == line.quantity * prices[line.sku]

    def _every_telling_of_a_line_is_the_same_fact(self) -> None:
        facts = defaultdict(set)
        for event in chain(self._tellings(), self.world.journal.events):
            facts[event.id].add(event.fingerprint())
        assert all(len(fingerprints) == 1 for fingerprints in facts.values())

    def teardown(self):
        """Drained: every run ended, every hold swept; nothing is held and the books still agree."""
        for run in self.runs:
            self.world.meter.settle(run.admission, run.recorder)
        self.runs.clear()
        self.world.clock.advance(timedelta(seconds=HOLD_TTL_SECONDS))
        self.world.memory.expire(100)
        assert self.world.memory.open_holds() == []
        self.the_account_is_its_parts()
        self.what_was_settled_is_what_the_lines_say()
        self.a_task_is_billed_at_most_once()
        self._every_telling_of_a_line_is_the_same_fact()


TestBilledTasks = BilledTasks.TestCase
TestBilledTasks.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
