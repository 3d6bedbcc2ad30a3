"""Any interleaving of leaseholders, crashes, lost and late calls keeps the ceiling and the books.

Three processes lease from one customer, on the rules of ``billing/core/credit_lease.py`` and a
quota store. Each call may be lost on its way, take effect without its answer, or arrive after later
ones; a process may die before or after it. What is on its disk stays. Tasks come again to any
process, through a lease or by themselves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from memory_leases import chunk_of
from stores import CUSTOMER, SKU, MemoryLeases, Store, StoreMaker, account_state, as_decided, usage

from billing.core.clock import from_ms
from billing.core.credit_lease import (
    SHARE,
    BatchSettlement,
    Lease,
    LeasedBatch,
    LeasedRun,
    LeaseGrant,
    LeaseOutcome,
    LeaseRequest,
    wish_of,
)
from billing.core.reservation import HoldRequest, LoadOutcome, ReleaseCause
from billing.core.usage_event import UsageEvent

TTL_SECONDS: Final = 100
STEP_SECONDS: Final = 40
WINDOW_SECONDS: Final = 3
GRANTED: Final = 1_000
PROCESSES = st.integers(0, 2)
TASKS = st.integers(0, 11)
SOME_TASKS = st.lists(TASKS, min_size=1, max_size=3)
AMOUNTS = st.integers(0, 25)
DEATHS = st.sampled_from(["", "", "", "", "before", "after"])
FATES = st.sampled_from(["", "", "", "", "die before", "die after", "unanswered", "late"])


class Died(BaseException):
    """The process was killed here."""


class Unanswered(Exception):  # noqa: N818 - what happened
    """The store may have done it or not."""


@dataclass(eq=False)
class Slip:
    """A finished run on the disk; ``told`` once its process knows that the store has settled it."""

    lease: str
    run: LeasedRun
    told: bool = False
    settled: bool = False
    """What is true, whoever knows of it."""


@dataclass(eq=False)
class Run:
    task: int
    lease: Lease
    held: int


@dataclass
class Process:
    """What is in its memory, and in ``slips`` and ``announced`` what is on its disk."""

    lease: Lease | None = None
    draining: list[Lease] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    slips: list[Slip] = field(default_factory=list)
    announced: set[str] = field(default_factory=set)
    is_dead: bool = False

    def leases(self) -> list[Lease]:
        return [*([self.lease] if self.lease else []), *self.draining]


class Leaseholders(RuleBasedStateMachine):
    """One customer, three processes, and a log that gets what is in the outbox."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store
        self.processes = [Process() for _ in range(3)]
        self.late_calls: list[Callable[[], object]] = []
        self.now = 0.0
        self.opened = 0
        self.granted = GRANTED
        self.budget: int | None = None
        self.suspended = False
        self.epoch = self.version = 0
        self.late = 0
        self.log: dict[Any, UsageEvent] = {}
        self.journal: list[UsageEvent] = []
        self.read = 0
        self.lost_data = False
        self.metered_at = from_ms(store.now_ms())
        self.month_ms = (store.now_ms() - 10**9, store.now_ms() + 10**9)
        self.finished: set[int] = set()

    @initialize(budget=st.none() | st.integers(300, 1_200))
    def the_account_is_loaded(self, budget: int | None) -> None:
        self.budget = budget
        self.rebuild()

    # -- what a process does -----------------------------------------------------------------------

    @rule(number=PROCESSES, amount=AMOUNTS, fate=FATES)
    def a_process_asks(self, number: int, amount: int, fate: str) -> None:
        self._ask(self._living(number), amount, fate)

    def _ask(self, process: Process, amount: int, fate: str) -> None:
        if process.lease is None or process.lease.ended:
            if process.lease is not None:
                process.draining.append(process.lease)
            self.opened += 1
            process.lease = Lease(CUSTOMER, SKU, f"lease:{self.opened}")
            process.announced.add(process.lease.lease_id)
        wish = wish_of(process.lease.used, amount)
        self._request(process, process.lease, wish, amount, fate)

    @rule(number=PROCESSES, fate=FATES)
    def a_process_gives_back(self, number: int, fate: str) -> None:
        process = self._living(number)
        for lease in process.leases():
            self._request(process, lease, 0, 0, fate)
            if lease.kept == 0 and lease.number and not fate:
                if lease is process.lease:
                    process.lease = None
                else:
                    process.draining.remove(lease)

    @rule(
        number=PROCESSES, tasks=st.lists(TASKS, min_size=1, max_size=3), amount=AMOUNTS, fate=FATES
    )
    def tasks_are_admitted(self, number: int, tasks: list[int], amount: int, fate: str) -> None:
        process = self._living(number)
        for task in tasks:
            if process.lease is None or not process.lease.admit(amount, self.now):
                self._ask(process, amount, fate)
            elif not process.is_dead:
                process.runs.append(Run(task, process.lease, amount))

    @rule(number=PROCESSES, data=st.data(), asked=AMOUNTS, dies=DEATHS)
    def a_run_ends(self, number: int, data: st.DataObject, asked: int, dies: str) -> None:
        process = self._living(number)
        if not process.runs:
            return
        run = process.runs.pop(data.draw(st.integers(0, len(process.runs) - 1)))
        if dies == "before":
            self._kill(process)
            return
        promised = run.lease.end(run.held, asked)
        events = (self._event(run.task, asked),)
        leased = LeasedRun(promised_microcredits=promised, events=events)
        process.slips.append(Slip(run.lease.lease_id, leased))
        self.finished.add(run.task)
        if dies:
            self._kill(process)

    @rule(number=PROCESSES, data=st.data())
    def a_run_ends_without_a_charge(self, number: int, data: st.DataObject) -> None:
        process = self._living(number)
        if process.runs:
            run = process.runs.pop(data.draw(st.integers(0, len(process.runs) - 1)))
            run.lease.end(run.held, 0)

    @rule(number=PROCESSES, count=st.integers(1, 4), fate=FATES)
    def a_process_settles_what_is_on_its_disk(self, number: int, count: int, fate: str) -> None:
        process = self._living(number)
        by_lease: defaultdict[str, list[Slip]] = defaultdict(list)
        for slip in [slip for slip in process.slips if not slip.told][:count]:
            by_lease[slip.lease].append(slip)
        for lease_id, slips in by_lease.items():
            answer = self._call(process, fate, lambda i=lease_id, s=slips: self._settle(i, s))
            if answer is None:
                return
            lease = next((each for each in process.leases() if each.lease_id == lease_id), None)
            for slip in slips:
                slip.told = True
                if lease is not None:
                    lease.settled(slip.run.promised_microcredits)

    @rule(number=PROCESSES)
    def a_process_is_killed(self, number: int) -> None:
        self._kill(self._living(number))

    # -- what happens around them ------------------------------------------------------------------

    @rule(number=PROCESSES)
    def its_node_finds_what_a_dead_process_left(self, number: int) -> None:
        process = self.processes[number]
        if not process.is_dead:
            return
        for lease_id in process.announced | {slip.lease for slip in process.slips}:
            self._settle(lease_id, [slip for slip in process.slips if slip.lease == lease_id])
        for lease_id in process.announced:
            self.store.quota.release(CUSTOMER, lease_id, ReleaseCause.WORKER_LOST, None)
        self.processes[number] = Process()

    @precondition(lambda self: self.late_calls)
    @rule(data=st.data())
    def a_call_arrives_late(self, data: st.DataObject) -> None:
        self.late_calls.pop(data.draw(st.integers(0, len(self.late_calls) - 1)))()

    @rule(task=TASKS, amount=AMOUNTS, asked=AMOUNTS)
    def a_task_is_run_by_itself(self, task: int, amount: int, asked: int) -> None:
        event = self._event(task, asked)
        request = HoldRequest(
            task_id=event.task_id,
            customer=CUSTOMER,
            sku=SKU,
            amount_microcredits=amount,
            ttl_seconds=TTL_SECONDS,
            mark=event.id,
        )
        if self.store.quota.reserve(request).outcome.admitted:
            settlement = self.store.quota.settle(CUSTOMER, event.task_id, [event], marked=True)
            self.finished.add(task)
            if settlement.lines and settlement.outcome.value != "exists":
                (line,) = settlement.lines
                self.journal.append(
                    event.settled(
                        amount=line.amount_microcredits,
                        shortfall=line.shortfall_microcredits,
                        quota_epoch=settlement.quota_epoch,
                    )
                )

    @rule()
    def seconds_pass(self) -> None:
        self.now += 1

    @rule()
    def time_passes_and_holds_are_swept(self) -> None:
        self.now += STEP_SECONDS
        self.store.pass_time(STEP_SECONDS)
        self.store.quota.expire(100)

    @rule(more=st.integers(1, 200))
    def credits_are_granted(self, more: int) -> None:
        self.granted += more
        self._load()

    @rule(suspended=st.booleans(), budget=st.none() | st.integers(0, 1_200))
    def the_terms_change(self, suspended: bool, budget: int | None) -> None:
        self.suspended, self.budget = suspended, budget
        self._load()

    @rule()
    def the_log_gets_what_is_in_the_outbox(self) -> None:
        events = self.store.outbox()
        for event in events[self.read :]:
            self._log(event)
        self.read = len(events)
        self._load()

    @rule()
    def rebuild(self) -> None:
        # What is on its way to the log would be given out again; see "The fence".
        self.the_log_gets_what_is_in_the_outbox()
        self.epoch += 1
        self.late = 0
        assert self._load(settled=self._logged()) is LoadOutcome.LOADED

    @rule()
    def the_store_loses_everything(self) -> None:
        self.lost_data = True
        self.store.lose_everything()
        self.read = 0
        # The journals are published again before any balance is loaded (the quarantine).
        for event in self.journal:
            self._log(event)
        if self.now % 2:
            self.rebuild()

    # -- always ------------------------------------------------------------------------------------

    @invariant()
    def leased_and_held_and_settled_are_never_more_than_granted(self) -> None:
        account = self.store.quota.account(CUSTOMER)
        if account is None:
            return
        taken = account.settled_microcredits + account.held_microcredits
        assert taken - account.late_microcredits <= self.granted
        if not self.lost_data:
            assert account.late_microcredits == 0
            assert account.available_microcredits >= 0

    @invariant()
    def the_account_is_its_parts(self) -> None:
        account = self.store.quota.account(CUSTOMER)
        if account is not None:
            holds = self.store.quota.open_holds(CUSTOMER)
            assert account.held_microcredits == sum(hold.held_microcredits for hold in holds)
            assert account.leases == sum(hold.task_id.startswith("lease:") for hold in holds)

    @invariant()
    def what_is_billed_is_never_more_than_granted(self) -> None:
        if not self.lost_data:
            billed = {event.id: event.amount_microcredits for event in self.store.outbox()}
            assert sum(billed.values()) <= self.granted

    @invariant()
    def a_task_is_charged_once(self) -> None:
        events = self.store.outbox()
        assert len({event.id for event in events}) == len(events)
        account = self.store.quota.account(CUSTOMER)
        if account is not None and not self.lost_data:
            assert account.settled_microcredits == sum(e.amount_microcredits for e in events)

    @invariant()
    def what_a_process_counts_on_is_held(self) -> None:
        for process in self.processes:
            for lease in process.leases():
                hold = self.store.quota.hold(CUSTOMER, lease.lease_id)
                if hold is None or hold.state.value != "held" or self.lost_data:
                    continue
                told_later = sum(
                    slip.run.promised_microcredits
                    for slip in process.slips
                    if slip.lease == lease.lease_id and not slip.settled
                )
                assert lease.free + lease.out + told_later <= hold.held_microcredits
                assert min(lease.free, lease.out, lease.pending) >= 0

    def teardown(self) -> None:
        """All die, are found, and everything is drained: each finished task is billed once."""
        if not self.epoch:
            return
        for call in self.late_calls:
            call()
        for number, process in enumerate(self.processes):
            self._kill(process)
            self.its_node_finds_what_a_dead_process_left(number)
        self.store.pass_time(TTL_SECONDS + 1)
        self.store.quota.expire(100)
        assert self.store.quota.open_holds() == []
        self.the_log_gets_what_is_in_the_outbox()
        if self.store.quota.account(CUSTOMER) is None:
            self.rebuild()
        self.leased_and_held_and_settled_are_never_more_than_granted()
        assert {event.task_id for event in self.log.values()} == {f"t{n}" for n in self.finished}
        account = self.store.quota.account(CUSTOMER)
        assert account is not None
        assert account.held_microcredits == account.leases == 0
        if not self.lost_data:
            assert account.settled_microcredits == self._logged()

    # -- how ---------------------------------------------------------------------------------------

    def _living(self, number: int) -> Process:
        process = self.processes[number]
        if process.is_dead:
            self.its_node_finds_what_a_dead_process_left(number)
        return self.processes[number]

    def _kill(self, process: Process) -> None:
        process.lease, process.draining, process.runs = None, [], []
        process.is_dead = True

    def _request(self, process: Process, lease: Lease, wish: int, least: int, fate: str) -> None:
        if wish == 0 and lease.number == 0:
            return
        request = lease.request(wish, least, TTL_SECONDS)
        grant = self._call(process, fate, lambda: self.store.quota.lease(request))
        if grant is not None:
            lease.granted(grant, self.now + WINDOW_SECONDS)
            # A client that tries again on a new connection asks the very same thing.
            assert _same_or_ended(self.store, request, grant)

    def _call(self, process: Process, fate: str, call: Callable[[], Any]) -> Any:
        """The answer, or None where there is none."""
        if fate == "die before":
            self._kill(process)
        elif fate == "late":
            self.late_calls.append(call)
        else:
            answer = call()
            if not fate:
                return answer
            if fate == "die after":
                self._kill(process)
        return None

    def _settle(self, lease_id: str, slips: list[Slip]) -> BatchSettlement | None:
        if not slips:
            return None
        batch = LeasedBatch(
            customer=CUSTOMER, lease_id=lease_id, runs=tuple(slip.run for slip in slips)
        )
        hold = self.store.quota.hold(CUSTOMER, lease_id)
        (settlement,) = self.store.quota.settle_leased([batch])
        assert isinstance(settlement, BatchSettlement)
        is_open = hold is not None and hold.state.value == "held"
        for slip, figures in zip(slips, settlement.runs, strict=True):
            asked = sum(event.amount_microcredits for event in slip.run.events)
            if is_open and not figures.repeat and slip.run.promised_microcredits == asked:
                assert self.lost_data or not any(f.shortfall_microcredits for f in figures.lines)
            slip.settled = True
        self.journal += as_decided(batch, settlement)
        return settlement

    def _event(self, task: int, amount: int) -> UsageEvent:
        return usage(self.store, f"t{task}", amount, metered_at=self.metered_at)

    def _log(self, event: UsageEvent) -> None:
        if event.id not in self.log:
            self.log[event.id] = event
            if event.quota_epoch != self.epoch:
                self.late += event.amount_microcredits

    def _logged(self) -> int:
        return sum(event.amount_microcredits for event in self.log.values())

    def _load(self, *, settled: int = -1) -> LoadOutcome:
        self.version += 1
        logged = self._logged()
        state = account_state(
            self.store,
            epoch=self.epoch,
            version=self.version,
            suspended=self.suspended,
            granted_microcredits=self.granted,
            settled_microcredits=settled,
            late_microcredits=self.late,
            budgets={} if self.budget is None else {"*": self.budget},
            spent={"*": logged, SKU: logged} if logged else {},
            period_start_ms=self.month_ms[0],
            period_end_ms=self.month_ms[1],
        )
        return self.store.quota.load(state)


def _same_or_ended(store: Store, request: LeaseRequest, grant: Any) -> bool:
    again = store.quota.lease(request)
    ended = again.outcome.value == "ended"
    return ended or again.granted_microcredits == grant.granted_microcredits


@pytest.fixture
def in_memory() -> StoreMaker:
    return MemoryLeases


def test_no_interleaving_of_leaseholders_spends_more_than_is_granted(make_store: StoreMaker):
    is_memory = make_store is MemoryLeases
    run_state_machine_as_test(
        lambda: Leaseholders(make_store()),
        settings=settings(
            max_examples=200 if is_memory else 10,
            stateful_step_count=60 if is_memory else 30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


# -- in one process --------------------------------------------------------------------------------


def test_nothing_is_admitted_before_an_answer_nor_after_its_time():
    lease = Lease(CUSTOMER, SKU, "lease:a")
    assert not lease.admit(0, now=0)
    lease.request(10, 1, TTL_SECONDS)
    assert not lease.admit(1, now=0)
    lease.granted(LeaseGrant(outcome=LeaseOutcome.GRANTED, granted_microcredits=10), 3)
    assert not lease.admit(11, now=2)
    assert lease.admit(10, now=2)
    lease.end(10, 0)
    assert not lease.admit(1, now=3)


@pytest.mark.parametrize(
    "outcome", [LeaseOutcome.SCARCE, LeaseOutcome.UNKNOWN_BALANCE, LeaseOutcome.ENDED]
)
def test_an_answer_without_a_grant_ends_admission(outcome: LeaseOutcome):
    lease = Lease(CUSTOMER, SKU, "lease:a")
    lease.request(10, 1, TTL_SECONDS)
    lease.granted(LeaseGrant(outcome=LeaseOutcome.GRANTED, granted_microcredits=10), 3)
    lease.request(10, 1, TTL_SECONDS)
    lease.granted(LeaseGrant(outcome=outcome), 6)
    assert not lease.admit(0, now=2)
    assert lease.ended is (outcome is LeaseOutcome.ENDED)


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
def test_a_run_is_promised_what_it_needs_as_far_as_its_lease_goes(free: int, held: int, asked: int):
    lease = Lease(CUSTOMER, SKU, "lease:a", free=free, out=held)
    promised = lease.end(held, asked)
    assert promised == min(asked, held + free)
    assert (lease.out, lease.pending) == (0, promised)
    assert lease.free == free + held - promised
    lease.settled(promised)
    assert lease.kept == 0


# -- the share -------------------------------------------------------------------------------------


def test_a_share_is_bounded_by_room_wish_and_holders():
    table = {
        # room, holders, wish, least: chunk
        (80, 1, 100, 1): 10,
        (80, 1, 5, 1): 5,
        (80, 2, 100, 1): 5,
        (7, 1, 100, 1): None,
        (0, 1, 1, 0): 0,
        (-1, 1, 1, 0): None,
        (2**53, 1, 2**53, 1): 2**53 // SHARE,
    }
    for (room, holders, wish, least), expected in table.items():
        assert chunk_of(room, holders, wish, least) == expected


def test_a_wish_doubles_with_use_and_is_never_nothing():
    assert wish_of(0, 5) == 160
    assert wish_of(100, 5) == 200
    assert wish_of(0, 0) == 1
    assert wish_of(2**53, 1) == 2**53
