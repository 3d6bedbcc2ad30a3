"""The invariants: sums that must agree once every task's usage is logged. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum


class DiscrepancyKind(StrEnum):
    """Kinds of disagreement, each with what it means for money."""

    AVAILABLE = "available"
    """granted - settled - held is not what can be taken: a customer stops too early or late."""
    NEGATIVE = "negative"
    """More was settled and held than granted: somebody is upside down."""
    GRANTED = "granted"
    """Redis or the fence has other grants than the table of grants."""
    SETTLED = "settled"
    """Redis charged another sum than the log has."""
    ROLLUP = "rollup"
    """A rollup is not the sum of its log lines: reports and invoices would be wrong."""
    DUPLICATE = "duplicate"
    """A task has one line twice: it was billed twice."""
    OVERDUE_HOLD = "overdue_hold"
    """A hold outlived its time and a sweep: its credits are locked away."""
    DENIED_BUT_RAN = "denied_but_ran"
    """A refused task left a quantity, an amount or a cost: its body ran."""
    LOST_EVENT = "lost_event"
    """An event was charged and is neither in the log nor on its way: it would never be billed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Discrepancy:
    """One disagreement. ``expected`` is the figure of PostgreSQL.

    ``bucket`` names a rollup: hour, SKU, outcome and reason; empty for anything else.
    """

    kind: DiscrepancyKind
    customer: str
    expected: int
    found: int
    detail: str = ""
    bucket: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """JSON-friendly."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerBalances:
    """One customer's sums in grants, log, rollups and quota store, in microcredits.

    ``granted`` is the sum of grants, ``fenced`` what the fence row says of it; ``logged`` and
    ``rolled_up`` are the sums of the log and of its rollups. The last four are the quota store's,
    None where it has no account: nothing was held or counted there, so there is nothing to compare.
    """

    customer: str
    granted: int
    fenced: int
    logged: int
    rolled_up: int
    account_granted: int | None = None
    account_settled: int | None = None
    account_held: int | None = None
    open_holds: int = 0
    """The sum of the customer's open holds, each looked up by itself."""


def compare(balances: Iterable[CustomerBalances]) -> list[Discrepancy]:
    """Compare every customer's sums; empty when all is well and drained."""
    found: list[Discrepancy] = []
    for each in balances:
        found += _of_customer(each)
    return found


def _of_customer(sums: CustomerBalances) -> list[Discrepancy]:
    checks: list[tuple[DiscrepancyKind, int, int, str]] = [
        (
            DiscrepancyKind.GRANTED,
            sums.granted,
            sums.fenced,
            "sum of grants against the fence",
        ),
        (DiscrepancyKind.ROLLUP, sums.logged, sums.rolled_up, "log against rollups"),
    ]
    if (
        sums.account_granted is not None
        and sums.account_settled is not None
        and sums.account_held is not None
    ):
        available = sums.account_granted - sums.account_settled - sums.account_held
        checks += [
            (
                DiscrepancyKind.GRANTED,
                sums.granted,
                sums.account_granted,
                "sum of grants against Redis",
            ),
            (
                DiscrepancyKind.SETTLED,
                sums.logged,
                sums.account_settled,
                "log against Redis",
            ),
            (
                DiscrepancyKind.AVAILABLE,
                sums.open_holds,
                sums.account_held,
                "open holds against what is held",
            ),
            (
                DiscrepancyKind.AVAILABLE,
                sums.granted - sums.logged - sums.open_holds,
                available,
                "granted - settled - held against Redis",
            ),
            (DiscrepancyKind.NEGATIVE, 0, min(available, 0), "available"),
        ]
    return [
        Discrepancy(
            kind=kind, customer=sums.customer, expected=expected, found=actual, detail=detail
        )
        for kind, expected, actual, detail in checks
        if expected != actual
    ]


def compare_rollups(
    logged: Mapping[tuple[str, ...], tuple[int, ...]],
    rolled_up: Mapping[tuple[str, ...], tuple[int, ...]],
) -> list[Discrepancy]:
    """Compare rollups with sums of the log, bucket by bucket.

    Args:
        logged: By (customer, hour, SKU, outcome, reason): events, quantity, amount, shortfall,
            cost.
        rolled_up: The same, from the rollups.
    """
    return [
        Discrepancy(
            kind=DiscrepancyKind.ROLLUP,
            customer=bucket[0],
            expected=logged.get(bucket, (0, 0, 0, 0, 0))[2],
            found=rolled_up.get(bucket, (0, 0, 0, 0, 0))[2],
            detail=f"{' '.join(bucket[1:]).strip()}: log {logged.get(bucket)}, "
            f"rollup {rolled_up.get(bucket)}",
            bucket=bucket[1:],
        )
        for bucket in sorted(logged.keys() | rolled_up.keys())
        if logged.get(bucket) != rolled_up.get(bucket)
    ]
