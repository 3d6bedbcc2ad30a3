"""Whatever happens, the sum over all hours is the log, and no closed hour is ever sent.

A model of one customer's SKU: the log, the outbox, the lines and two providers in memory, and the
rules of ``due`` and ``carry`` between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from billing.providers.port import ProviderCause, ProviderMeter
from billing.providers.report_value import scaled
from billing.reporting.adjustments import (
    Adjustment,
    AdjustmentReason,
    AdjustmentTerms,
    BucketPlan,
    Holding,
    Leftover,
    as_billed,
    closing_reason,
    left_over,
    plan_bucket,
    too_old_before,
)
from billing.reporting.revision_rules import Bucket, Holder, Last, Revision, revise
from billing.reporting.usage_report import BILLED, OPEN, TAKEN, AttentionCause, ReportState

START = datetime(2026, 11, 10, tzinfo=UTC)
HOUR = timedelta(hours=1)
METER = ProviderMeter(sku="s", name="m", display_name="s")
MAX_AGES = {"young": 12 * HOUR, "old": None}
LEFT = {AttentionCause.BELOW_ZERO.value, AttentionCause.BELOW_UNIT.value}


@dataclass
class Row:
    """A revision in the outbox."""

    revision: Revision
    state: ReportState
    cause: str
    outcome_unknown: bool = False
    answered: int = 0


class Books(RuleBasedStateMachine):
    @initialize(decimals=st.sampled_from([6, 6, 5, 4]))
    def begin(self, decimals: int) -> None:
        self.decimals = decimals
        self.unit = 10 ** (6 - decimals)
        self.now = START + 3 * HOUR + timedelta(minutes=30)
        self.log: dict[datetime, int] = {}
        self.carries: list[Adjustment] = []
        self.rows: dict[datetime, list[Row]] = {}
        self.shown: dict[tuple[str, datetime], int] = {}
        self.corrected: set[tuple[str, datetime]] = set()
        self.sealed: datetime | None = None
        self.provider = "young"
        self.mapped = True
        self.clock = 0

    # -- what is derived ---------------------------------------------------------------------------

    @property
    def under_way(self) -> datetime:
        return self.now.replace(minute=0)

    def hours(self) -> list[datetime]:
        lines = [hour for line in self.carries for hour in (line.from_hour, line.to_hour)]
        return sorted({*self.log, *self.rows, *lines})

    def total(self, hour: datetime) -> int:
        out = sum(c.amount_microcredits for c in self.carries if c.from_hour == hour)
        into = sum(c.amount_microcredits for c in self.carries if c.to_hour == hour)
        return self.log.get(hour, 0) - out + into

    def taken(self, hour: datetime) -> dict[Holder, int]:
        taken = {}
        for row in self.rows.get(hour, []):
            if row.state in TAKEN:
                taken[row.revision.holder] = row.revision.held_microcredits
        return taken

    def last(self, hour: datetime) -> Row | None:
        return self.rows[hour][-1] if hour in self.rows else None

    def bucket(self, hour: datetime, total: int | None = None) -> Bucket:
        row = self.last(hour)
        return Bucket(
            customer="acme", sku="s", hour=hour,
            total_microcredits=self.total(hour) if total is None else total,
            customer_ref="acme" if self.mapped else None,
            last=None if row is None else Last(
                holder=row.revision.holder, revision=row.revision.revision, state=row.state,
                cause=row.cause, outcome_unknown=row.outcome_unknown,
                total_microcredits=row.revision.total_microcredits,
            ),
            taken=self.taken(hour), closed_until=self.sealed,
        )  # fmt: skip

    def terms(self) -> AdjustmentTerms:
        return AdjustmentTerms(
            provider=self.provider, meter=METER, decimals=self.decimals, under_way=self.under_way,
            too_old=too_old_before(self.now, MAX_AGES[self.provider]),
        )  # fmt: skip

    def closed(self, hour: datetime) -> bool:
        return closing_reason(self.bucket(hour), self.terms().too_old) is not None

    # -- what happens ------------------------------------------------------------------------------

    @rule(ago=st.integers(0, 20), amount=st.integers(1, 400))
    def use(self, ago: int, amount: int) -> None:
        hour = max(self.under_way - ago * HOUR, START)
        self.log[hour] = self.log.get(hour, 0) + amount

    @rule(hours=st.integers(1, 4))
    def later(self, hours: int) -> None:
        self.now += hours * HOUR

    @rule()
    def change_provider(self) -> None:
        self.provider = "old" if self.provider == "young" else "young"

    @rule(mapped=st.sampled_from([True, True, False]))
    def map_customer(self, mapped: bool) -> None:
        self.mapped = mapped

    @rule(
        uses=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 400)), max_size=3),
        answers=st.lists(st.sampled_from(["taken", "taken", "lost", "unsent"]), max_size=5),
    )
    def an_hour_passes(self, uses: list[tuple[int, int]], answers: list[str]) -> None:
        for ago, amount in uses:
            self.use(ago, amount)
        self.now += HOUR
        self.send(answers)
        self.plan()
        self.send(answers)

    @rule(up_to_now=st.booleans())
    def plan(self, up_to_now: bool = False) -> None:
        until = self.under_way + HOUR if up_to_now else self.under_way
        read = {hour: self.bucket(hour) for hour in self.hours() if hour < until}
        moved: set[datetime] = set()
        for hour, bucket in read.items():
            if hour in moved:
                continue
            others = {h: left_over(self.bucket(h), self.terms()) for h in self.left(except_=hour)}
            found = plan_bucket(bucket, self.terms(), [one for one in others.values() if one])
            self.write(hour, found, others)
            moved |= {line.from_hour for line in found.taken}

    def left(self, except_: datetime) -> list[datetime]:
        return [
            hour
            for hour, rows in self.rows.items()
            if hour != except_
            and rows[-1].state is ReportState.NEEDS_ATTENTION
            and rows[-1].cause in LEFT
            and rows[-1].revision.holder.provider == self.provider
            and self.total(hour) == rows[-1].revision.total_microcredits
        ]

    def write(
        self, hour: datetime, found: BucketPlan, others: dict[datetime, Leftover | None]
    ) -> None:
        if found == BucketPlan():
            return
        last = self.last(hour)
        if found.out is not None:
            assert found.revision is not None
            assert self.mapped
            assert last is None or not (last.outcome_unknown or last.state is ReportState.SENDING)
        if min((line.amount_microcredits for line in found.taken), default=0) < 0:
            grown = self.total(hour) + sum(line.amount_microcredits for line in found.taken)
            holder = Holder(self.provider, "acme", "m")
            assert self.bucket(hour, grown).held_by(holder) >= 0
            assert not self.closed(hour)
        relieved = {}
        for line in found.taken:
            assert others[line.from_hour] is not None
            left = self.total(line.from_hour) - line.amount_microcredits
            relieved[line.from_hour] = revise(
                self.bucket(line.from_hour, left), self.provider, METER, self.decimals
            )
        self.add(hour, found.revision)
        for other, revision in relieved.items():
            assert revision is not None
            self.add(other, revision)
        for line in (*found.taken, *filter(None, [found.out])):
            assert line.from_hour < line.to_hour
            assert line.amount_microcredits != 0
            self.carries.append(line)

    def add(self, hour: datetime, revision: Revision | None) -> None:
        if revision is None:
            return
        last = self.last(hour)
        if last is not None and last.state in OPEN:
            assert revision.parks_last is not None
            assert last.state is ReportState.PENDING
            last.state, last.cause = ReportState.NEEDS_ATTENTION, revision.parks_last.value
        assert revision.revision == (last.revision.revision + 1 if last else 1)
        self.rows.setdefault(hour, []).append(Row(revision, revision.state, revision.cause))

    @rule(answers=st.lists(st.sampled_from(["taken", "lost", "unsent", "refused"]), max_size=9))
    def send(self, answers: list[str]) -> None:
        fates = iter(answers)
        too_old = too_old_before(self.now, MAX_AGES[self.provider])
        for hour in sorted(self.rows):
            row = self.rows[hour][-1]
            old = too_old is not None and hour < too_old
            sealed = self.sealed is not None and hour + HOUR <= self.sealed
            if row.state not in OPEN or row.revision.holder.provider != self.provider or sealed:
                continue
            if old and row.state is ReportState.PENDING:
                continue
            self.clock += 1
            row.answered = self.clock
            self.answer(hour, row, next(fates, "taken"), old=old)

    def answer(self, hour: datetime, row: Row, fate: str, *, old: bool) -> None:
        assert row.revision.value >= 0
        assert row.revision.value * self.unit == row.revision.held_microcredits
        if old:
            fate = "refused"
        if fate in {"taken", "lost"}:
            self.shown[self.provider, hour] = row.revision.value
        if fate == "taken":
            row.state, row.outcome_unknown = ReportState.ACCEPTED, False
        elif fate == "refused":
            row.state, row.cause = ReportState.NEEDS_ATTENTION, ProviderCause.TOO_OLD.value
        else:
            row.state, row.outcome_unknown = ReportState.UNKNOWN, True

    @rule()
    def read_back(self) -> None:
        """Decides what is parked and outcome_unknown, or sealed and without an answer."""
        for hour, rows in self.rows.items():
            row = rows[-1]
            sealed = self.sealed is not None and hour + HOUR <= self.sealed
            if not row.outcome_unknown or not (row.state is ReportState.NEEDS_ATTENTION or sealed):
                continue
            holder = row.revision.holder
            shows = self.shown.get((holder.provider, hour), 0)
            arrived = shows == row.revision.value and shows * self.unit != self.taken(hour).get(
                holder, 0
            )
            row.outcome_unknown = False
            row.state = ReportState.ACCEPTED if arrived else ReportState.NEEDS_ATTENTION
            row.cause = "" if arrived else AttentionCause.PERIOD_CLOSED.value

    @precondition(lambda self: self.sealed is None or self.sealed < self.under_way - 2 * HOUR)
    @rule(ago=st.integers(0, 3), more=st.sampled_from([-200, -7, 0, 0, 3, 90, 300]))
    def seal(self, ago: int, more: int) -> None:
        """The provider's invoice is final: it has what is shown, or not quite."""
        start = self.sealed or START
        end = max(self.under_way - ago * HOUR, start + HOUR)
        if end > self.under_way:
            return
        self.sealed = end
        self.read_back()
        hours = [hour for hour in self.rows if start <= hour < end]
        billed = sum(self.shown.get((self.provider, hour), 0) for hour in hours) + more
        self.settle(hours, max(billed, 0))

    def settle(self, hours: list[datetime], billed: int) -> None:
        holder = Holder(self.provider, "acme", "m")
        holdings = []
        for hour in hours:
            held = self.taken(hour).get(holder)
            newest = [r.answered for r in self.rows[hour] if r.state in TAKEN]
            if held is not None:
                at = START + newest[-1] * HOUR
                holdings.append(Holding(hour, at, scaled(held, self.decimals).value))
        for hour, value in as_billed(holdings, billed).items():
            taken = self.taken(hour)
            added = value * self.unit - taken[holder]
            last = self.rows[hour][-1]
            if last.state is ReportState.PENDING:
                last.state, last.cause = (
                    ReportState.NEEDS_ATTENTION,
                    AttentionCause.PERIOD_CLOSED.value,
                )
            revision = Revision(
                revision=last.revision.revision + 1, holder=holder, state=ReportState.CONFIRMED,
                cause=BILLED, value=value, total_microcredits=sum(taken.values()) + added,
                held_microcredits=value * self.unit,
            )  # fmt: skip
            self.rows[hour].append(
                Row(revision, ReportState.CONFIRMED, BILLED, answered=self.clock)
            )
            self.corrected.add((self.provider, hour))
            line = Adjustment(
                from_hour=hour, to_hour=self.under_way, amount_microcredits=-added,
                reason=AdjustmentReason.BILLED,
            )  # fmt: skip
            self.carries.append(line)

    # -- what always holds -------------------------------------------------------------------------

    @invariant()
    def the_sum_over_all_hours_is_the_log(self) -> None:
        if not hasattr(self, "log"):
            return
        known = 0
        for hour in self.hours():
            taken = sum(self.taken(hour).values())
            row = self.last(hour)
            stood = 0 if row is None else row.revision.total_microcredits
            if row is not None and row.state in TAKEN:
                assert stood == taken
            adds = stood - taken if row is not None and row.state not in TAKEN else 0
            known += taken + adds + (self.total(hour) - stood)
        assert known == sum(self.log.values())

    @invariant()
    def what_the_books_say_was_taken_is_shown(self) -> None:
        if not hasattr(self, "log"):
            return
        for hour in self.rows:
            outcome_unknown = self.rows[hour][-1].outcome_unknown
            for holder, held in self.taken(hour).items():
                key = (holder.provider, hour)
                if key not in self.corrected and not outcome_unknown:
                    assert self.shown[key] * self.unit == held

    def teardown(self) -> None:
        """Left alone, everything is told, but for what is below zero or below a unit."""
        if not hasattr(self, "log"):
            return
        self.mapped = True
        for _ in range(6):
            for provider in ("young", "old"):
                self.provider = provider
                self.send([])
                self.read_back()
            self.plan()
            self.send([])
            self.now += HOUR
        self.the_sum_over_all_hours_is_the_log()
        for hour in self.hours():
            row = self.last(hour)
            if row is None:
                assert self.total(hour) == 0
                continue
            assert row.state not in OPEN, (hour, row)
            rest = self.total(hour) - sum(self.taken(hour).values())
            assert row.revision.total_microcredits == self.total(hour) or hour >= self.under_way
            if rest and hour < self.under_way - HOUR and row.cause != ProviderCause.TOO_OLD:
                assert row.cause in LEFT, (hour, row, rest)
                assert rest < self.unit


Books.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestBooks = Books.TestCase
