"""Random runs of every verb, compared step by step with a model that is too simple to be wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from stores import (
    CUSTOMER,
    HOLD_TTL_SECONDS,
    RECORD_TTL_SECONDS,
    SKU,
    MemoryStore,
    Store,
    StoreMaker,
    account_state,
    charged,
    failure,
    reserve,
    settle,
)

from billing.core.reservation import (
    HoldState,
    HoldView,
    LoadOutcome,
    ReleaseCause,
    ReleaseOutcome,
    ReserveOutcome,
    SettleOutcome,
)

TASKS = st.sampled_from(["t1", "t2", "t3", "t4"])
AMOUNTS = st.integers(0, 60)
STEP_SECONDS = 40
assert HOLD_TTL_SECONDS % STEP_SECONDS, "no hold may be over time at the very instant of a sweep"


@dataclass
class ModelTask:
    """The admissions of a task: of the latest its state, what it holds, when it is over time."""

    state: HoldState | None = None
    admission: int = 0
    held: int = 0
    expires_at: int = 0
    cause: str = ""
    final: bool = False
    figures: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Model:
    """One customer. What is available is ``granted - charged - held`` and nothing else."""

    granted: int = 100
    budget: int | None = None
    is_loaded: bool = False
    now: int = 0
    counted: int = 0
    logged: int = 0
    tasks: dict[str, ModelTask] = field(default_factory=dict)

    def held(self) -> int:
        return sum(task.held for task in self.tasks.values() if task.state is HoldState.HELD)

    def available(self) -> int:
        return self.granted - self.counted - self.held()

    def reserve(self, name: str, amount: int) -> ReserveOutcome:
        task = self.tasks.setdefault(name, ModelTask())
        if task.state is HoldState.SETTLED:
            return ReserveOutcome.ALREADY_SETTLED
        if task.final:
            return ReserveOutcome.DENIED
        was_held = task.held if task.state is HoldState.HELD else 0
        if task.state is HoldState.HELD and amount == was_held:
            task.expires_at = self.now + HOLD_TTL_SECONDS
            return ReserveOutcome.EXISTS
        if not self.is_loaded:
            return ReserveOutcome.UNKNOWN_BALANCE
        extra = amount - was_held
        may_shrink = task.state is HoldState.HELD and extra <= 0
        if not may_shrink and not self._fits(extra):
            return ReserveOutcome.DENIED
        outcome = ReserveOutcome.ADJUSTED
        if task.state is not HoldState.HELD:
            outcome = ReserveOutcome.HELD
            task.admission += 1
        task.state, task.held, task.cause = HoldState.HELD, amount, ""
        task.expires_at = self.now + HOLD_TTL_SECONDS
        return outcome

    def settle(self, name: str, amounts: list[int]) -> SettleOutcome:
        task = self.tasks.setdefault(name, ModelTask())
        if task.state is HoldState.SETTLED:
            return SettleOutcome.EXISTS
        outcome = SettleOutcome.SETTLED
        room = max(self.available(), 0) + (task.held if task.state is HoldState.HELD else 0)
        if task.state is not HoldState.HELD:
            outcome = SettleOutcome.WITHOUT_HOLD
            task.admission, task.held = task.admission + 1, 0
        promised = task.held if task.state is HoldState.HELD else 0
        others = self.held() - promised
        if not self.is_loaded:
            outcome, room = SettleOutcome.UNCOUNTED, sum(amounts)
        for asked in amounts:
            amount = min(asked, room)
            if self.is_loaded and self.budget is not None:
                amount = min(amount, max(promised, self.budget - self.counted - others, 0))
            promised = max(promised - amount, 0)
            room -= amount
            task.figures.append((amount, asked - amount))
            self.logged += amount
            self.counted += amount
        task.state, task.cause, task.final = HoldState.SETTLED, "", False
        return outcome

    def release(self, name: str, cause: ReleaseCause) -> ReleaseOutcome:
        task = self.tasks.setdefault(name, ModelTask())
        if task.state is HoldState.HELD:
            task.state, task.cause, task.final = HoldState.RELEASED, cause.value, cause.final
            return ReleaseOutcome.RELEASED
        told_before = task.cause == cause.value
        if task.admission and (task.state is HoldState.SETTLED or not cause.final or told_before):
            return ReleaseOutcome.ENDED_BEFORE
        if not cause.final:
            return ReleaseOutcome.NOTHING
        task.final = True
        return ReleaseOutcome.TOMBSTONE

    def expire(self) -> set[str]:
        due = {
            name
            for name, task in self.tasks.items()
            if task.state is HoldState.HELD and task.expires_at <= self.now
        }
        for name in due:
            self.tasks[name].state = HoldState.EXPIRED
        return due

    def _fits(self, extra: int) -> bool:
        spent = self.counted + self.held()
        return extra <= self.available() and (self.budget is None or spent + extra <= self.budget)


class QuotaMachine(RuleBasedStateMachine):
    """Does the same to a store and to the model; they must always agree."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store
        self.model = Model()
        self.epoch = self.version = 0
        self.ended: dict[tuple[str, int], HoldView] = {}
        # One month for the whole run, far from its edges.
        self.month_ms = (store.now_ms() - 10**9, store.now_ms() + 10**9)

    @rule(task=TASKS, amount=AMOUNTS)
    def reserve(self, task: str, amount: int) -> None:
        expected = self.model.reserve(task, amount)
        reservation = reserve(self.store, task, amount)
        assert reservation.outcome is expected
        if expected.admitted:
            assert reservation.admission == self.model.tasks[task].admission
            left = max(self.model.available(), 0) if self.model.is_loaded else 0
            assert reservation.left_microcredits == left

    @rule(task=TASKS, amounts=st.lists(AMOUNTS, max_size=3))
    def settle(self, task: str, amounts: list[int]) -> None:
        expected = self.model.settle(task, amounts)
        settlement = settle(self.store, task, *amounts)
        assert settlement.outcome is expected
        assert charged(settlement) == self.model.tasks[task].figures

    @rule(task=TASKS, cause=st.sampled_from([ReleaseCause.EXCEPTION, ReleaseCause.REVOKED]))
    def release(self, task: str, cause: ReleaseCause) -> None:
        expected = self.model.release(task, cause)
        event = failure(self.store, task)
        assert self.store.quota.release(CUSTOMER, task, cause, event) is expected

    @precondition(lambda self: self.model.now < RECORD_TTL_SECONDS - 2 * STEP_SECONDS)
    @rule()
    def pass_time(self) -> None:
        self.model.now += STEP_SECONDS
        self.store.pass_time(STEP_SECONDS)

    @rule()
    def expire(self) -> None:
        expected = self.model.expire()
        assert {hold.task_id for hold in self.store.quota.expire(10)} == expected

    @rule()
    def lose_the_account(self) -> None:
        self.model.is_loaded = False
        self.store.forget_account(CUSTOMER)

    @rule()
    def rebuild(self) -> None:
        # Every event has reached the log by then: what late ones do is tested by itself.
        self.epoch += 1
        self.model.is_loaded, self.model.counted = True, self.model.logged
        assert self._load(settled=self.model.logged) is LoadOutcome.LOADED

    @precondition(lambda self: self.model.is_loaded)
    @rule(granted=st.integers(0, 200), budget=st.none() | st.integers(0, 200))
    def change_terms(self, granted: int, budget: int | None) -> None:
        # A grant is never taken back below what is used.
        used = self.model.counted + self.model.held()
        self.model.granted, self.model.budget = max(granted, used), budget
        assert self._load(settled=-1) is LoadOutcome.SYNCED

    @invariant()
    def holds_agree(self) -> None:
        holds = self.store.quota.open_holds(CUSTOMER)
        assert sum(hold.held_microcredits for hold in holds) == self.model.held()
        for name, task in self.model.tasks.items():
            hold = self.store.quota.hold(CUSTOMER, name)
            if task.state is None:
                # Never admitted: not known, or the mark that it must not be.
                assert (hold is not None) == task.final
            else:
                assert hold is not None
                assert (hold.state, hold.admission) == (task.state, task.admission)
                assert (hold.cause, hold.held_microcredits) == (task.cause, task.held)

    @invariant()
    def the_account_agrees(self) -> None:
        account = self.store.quota.account(CUSTOMER)
        assert (account is not None) == self.model.is_loaded
        if account is not None:
            assert account.granted_microcredits == self.model.granted
            assert account.settled_microcredits == self.model.counted
            assert account.held_microcredits == self.model.held()
            assert account.available_microcredits == self.model.available()
            spent = self.model.counted + self.model.held()
            assert account.spent.get("*", 0) == spent

    @invariant()
    def nothing_is_overspent_while_the_balance_is_known(self) -> None:
        # Usage settled while it was not known is charged in full, which alone may go below zero.
        account = self.store.quota.account(CUSTOMER)
        if account is not None and not self._was_charged_unseen():
            assert account.available_microcredits >= 0

    @invariant()
    def the_outbox_has_every_charge(self) -> None:
        events = self.store.outbox()
        assert sum(event.amount_microcredits for event in events) == self.model.logged
        lines = [(event.task_id, event.line) for event in events if event.amount_microcredits]
        assert len(lines) == len(set(lines))

    @invariant()
    def what_has_ended_stays_as_it_ended(self) -> None:
        for name in self.model.tasks:
            hold = self.store.quota.hold(CUSTOMER, name)
            if hold is not None and hold.state is not HoldState.HELD and hold.admission:
                assert self.ended.setdefault((name, hold.admission), hold) == hold

    def _was_charged_unseen(self) -> bool:
        return any(event.quota_epoch == 0 for event in self.store.outbox())

    def _load(self, *, settled: int) -> LoadOutcome:
        self.version += 1
        spent = {"*": self.model.logged, SKU: self.model.logged} if self.model.logged else {}
        budgets = {} if self.model.budget is None else {"*": self.model.budget}
        state = account_state(
            self.store,
            epoch=self.epoch,
            version=self.version,
            granted_microcredits=self.model.granted,
            settled_microcredits=settled,
            budgets=budgets,
            spent=spent,
            period_start_ms=self.month_ms[0],
            period_end_ms=self.month_ms[1],
        )
        return self.store.quota.load(state)


def test_every_run_of_the_store_is_a_run_of_the_model(make_store: StoreMaker):
    is_memory = make_store is MemoryStore

    run_state_machine_as_test(
        lambda: QuotaMachine(make_store()),
        settings=settings(
            max_examples=150 if is_memory else 10,
            stateful_step_count=40 if is_memory else 25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
