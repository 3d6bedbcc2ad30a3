"""Judging a run by what its tasks were told and what the log has. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any, Final

UNAVAILABLE: Final = "quota_unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One task of the load: when it began, whether it was answered, and what it was charged."""

    at: float
    answer_seconds: float
    customer: str
    task: str
    outcome: str
    amount: int = 0
    settle: str = ""
    settle_seconds: float = 0.0

    @property
    def answered(self) -> bool:
        """Admitted, or denied for a reason of its customer's."""
        return self.outcome != UNAVAILABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A charge in the log."""

    customer: str
    task: str
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """What came of the tasks. ``amounts_differ``: the log has another amount than was settled."""

    admitted: int
    logged: int
    lost: int
    twice: int
    unknown: int
    amounts_differ: int
    over_ceiling: int
    worst_excess_microcredits: int

    @property
    def exact(self) -> bool:
        """Each admitted task once, and nothing else."""
        return not (self.lost or self.twice or self.unknown or self.amounts_differ)

    def document(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interruption:
    """How long admissions failed. ``seconds``: from the first unanswered attempt to the last."""

    unanswered: int
    seconds: float
    slowest_answer_seconds: float
    attempts: int


def books(attempts: Collection[Attempt], rows: Sequence[Row], granted: Mapping[str, int]) -> Books:
    """Compare every admitted task with the log, and each customer's sum with what it was given."""
    admitted = {each.task: each for each in attempts if each.outcome == "admitted"}
    times = Counter(row.task for row in rows)
    charged: Counter[str] = Counter()
    for row in rows:
        charged[row.customer] += row.amount
    excess = [charged[customer] - most for customer, most in granted.items()]
    return Books(
        admitted=len(admitted),
        logged=len(rows),
        lost=sum(times[task] == 0 for task in admitted),
        twice=sum(count > 1 for count in times.values()),
        unknown=sum(task not in admitted for task in times),
        amounts_differ=sum(
            row.task in admitted and admitted[row.task].amount != row.amount for row in rows
        ),
        over_ceiling=sum(each > 0 for each in excess),
        worst_excess_microcredits=max([0, *excess]),
    )


def interruption(attempts: Collection[Attempt], since: float) -> Interruption:
    """What attempts met from an instant on."""
    later = [each for each in attempts if each.at + each.answer_seconds >= since]
    failed = sorted((each for each in later if not each.answered), key=lambda each: each.at)
    last = max((each.at + each.answer_seconds for each in failed), default=0.0)
    return Interruption(
        unanswered=len(failed),
        seconds=round(last - failed[0].at, 3) if failed else 0.0,
        slowest_answer_seconds=round(
            max((each.answer_seconds for each in later if each.answered), default=0.0), 3
        ),
        attempts=len(later),
    )


def percentile(values: Collection[float], percent: int) -> float:
    """The nearest-rank percentile; 0 of nothing."""
    ranked = sorted(values)
    return ranked[max(ceil(len(ranked) * percent / 100) - 1, 0)] if ranked else 0.0
