"""Suite questions: what an operator or a customer asks, of a year of usage and of a tenth of it.

The same questions, of customers drawn with the same luck, are asked of two databases in turn. The
value is the time with all events, the baseline that with a tenth of them: the ratio is how cost
grows. Each round asks new questions, so that nothing but what PostgreSQL itself keeps is warm.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Final

import sqlalchemy as sa

from billing.core.periods import Period
from billing.postgres.engines import owner_engine
from billing.usage_log.receipts import Receipts
from billing.usage_log.usage_queries import By, UsageQueries
from lab.bench import plans
from lab.bench.bulk import Shape, customer_name, fill, months_before
from lab.bench.effort import Effort, Outcome
from lab.bench.errors import BenchError
from lab.bench.ground import Ground, Say
from lab.bench.report import Goal, compare, percentile

NAME: Final = "questions"
CUSTOMERS: Final = 2_000
MONTHS: Final = 12
TENTH: Final = 10
_P99: Final = 99.0
_PAGE: Final = 100
_LIMIT_MS: Final = 50.0
_GROWTH: Final = 1.2
_SEED: Final = 7
_PLANS: Final = 5
_MOST_ROWS: Final = 1_000
"""What a question may go through in the log; a page has a hundred lines."""
Ask = Callable[["Year", random.Random], object]


class Year:
    """One database with usage in it."""

    def __init__(self, engine: sa.Engine, shape: Shape) -> None:
        self.engine = engine
        self.shape = shape
        self.usage = UsageQueries(engine)
        self.receipts = Receipts(engine)
        self.tasks = self._some_tasks()

    def customer(self, chance: random.Random) -> str:
        """A customer, large ones more often: as often as they have usage."""
        return customer_name(int(self.shape.customers * chance.random() ** 3))

    def month(self, chance: random.Random) -> Period:
        """Any of its months."""
        return chance.choice(self.shape.months)

    def _some_tasks(self) -> list[str]:
        query = sa.text("SELECT task_id FROM usage_events TABLESAMPLE SYSTEM (1) LIMIT 2000")
        with self.engine.connect() as connection:
            return list(connection.execute(query).scalars())


def _month_by_sku(year: Year, chance: random.Random) -> object:
    return year.usage.by(year.customer(chance), year.month(chance), By.SKU)


def _receipt_page(year: Year, chance: random.Random) -> object:
    return year.receipts.lines(year.customer(chance), year.month(chance), limit=_PAGE)


def _explain(year: Year, chance: random.Random) -> object:
    found = year.receipts.for_task(chance.choice(year.tasks))
    if not found:
        raise BenchError("a task of the log was not found in it")
    return found


def _subjects(year: Year, chance: random.Random) -> object:
    return year.usage.subjects(year.customer(chance), year.month(chance).start.date())


QUESTIONS: Final[dict[str, Ask]] = {
    "month of one customer by SKU": _month_by_sku,
    f"receipt, a page of {_PAGE} lines": _receipt_page,
    "every line of one task": _explain,
    "distinct subjects of a month": _subjects,
}


def run(ground: Ground, effort: Effort, say: Say) -> Outcome:
    """Measure.

    Raises:
        BenchError: A question reads a partition that it has no business in.
    """
    now = ground.container(ground.settings(NAME)).clock.now()
    months = months_before(now, MONTHS)
    sizes = (effort.year_events, effort.year_events // TENTH)
    with _years(ground, sizes, months, say) as (full, tenth):
        notes = []
        for year in (full, tenth):
            notes += _check_plans(year)
            _round(year, effort.questions // 5 or 1, _SEED)
        pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in QUESTIONS}
        for number in range(effort.repetitions):
            say(f"repetition {number + 1} of {effort.repetitions}")
            seed = _SEED + 1 + number
            of_full = _round(full, effort.questions, seed)
            of_tenth = _round(tenth, effort.questions, seed)
            for name in QUESTIONS:
                pairs[name].append((of_full[name], of_tenth[name]))
    goal = Goal(ratio_at_most=_GROWTH, value_at_most=_LIMIT_MS)
    figures = [
        compare(NAME, f"{name}, p99", "ms", f"{sizes[1]:,} events", measured, goal)
        for name, measured in pairs.items()
    ]
    note = (
        f"questions: {sizes[0]:,} events over {MONTHS} months and {CUSTOMERS:,} customers; each "
        f"value is the 99th percentile of {effort.questions} questions, targets: growth of at "
        f"most {_GROWTH} and {_LIMIT_MS:.0f} ms. The id of a task does not tell its month: every "
        "line of one task is looked for in each partition's index of tasks, and in no table."
    )
    return Outcome(figures, [note, *notes])


@contextmanager
def _years(
    ground: Ground, sizes: Sequence[int], months: Sequence[Period], say: Say
) -> Iterator[list[Year]]:
    years = []
    for size in sizes:
        engine = owner_engine(ground.extra_database(f"year_{size}"))
        shape = Shape(events=size, customers=CUSTOMERS, months=months)
        fill(engine, shape, lambda text, size=size: say(f"{size:,} events, {text}"))  # type: ignore[misc]
        years.append(Year(engine, shape))
    try:
        yield years
    finally:
        for year in years:
            year.engine.dispose()


def _round(year: Year, count: int, seed: int) -> dict[str, float]:
    """The 99th percentile of each question, in milliseconds; questions take turns."""
    chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
    times: dict[str, list[float]] = {name: [] for name in QUESTIONS}
    for _ in range(count):
        for name, ask in QUESTIONS.items():
            began = perf_counter()
            ask(year, chance)
            times[name].append((perf_counter() - began) * 1000)
    return {name: percentile(found, _P99) for name, found in times.items()}


def _check_plans(year: Year) -> list[str]:
    """See which partitions each question reads; what there is to say of it.

    Raises:
        BenchError: One that it need not.
    """
    chance = random.Random(_SEED)  # noqa: S311 - repeatable, not secret
    notes = []
    for name, ask in QUESTIONS.items():
        read: dict[str, int] = {}
        for _ in range(_PLANS):
            found = plans.read_by(year.engine, partial(ask, year, chance))
            if ask is not _explain and len(found) > 1:
                raise BenchError(f"{name}: reads {sorted(found)}")
            if sum(found.values()) > _MOST_ROWS:
                raise BenchError(f"{name}: goes through more than it needs: {found}")
            read = max(read, found, key=len)
        rows = sum(read.values())
        notes.append(
            f"questions, {name}, {year.shape.events:,} events: reads {len(read)} partitions of the "
            f"log and goes through {rows:,} of its rows (EXPLAIN ANALYZE)."
        )
    return notes
