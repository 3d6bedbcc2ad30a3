"""Findings of a verification, each with what it means for money. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from billing.core.credits import format_credits
from billing.usage_log.totals import Totals

Bucket = tuple[str, str, str, str]


class FindingKind(StrEnum):
    """Kinds of findings."""

    CHANGED = "changed"
    """A row is not the one that was logged."""
    REMOVED = "removed"
    """A row that was logged is not there."""
    ADDED = "added"
    """A row is there that the application never logged."""
    CHAIN_BROKEN = "chain_broken"
    """A seal, or what is kept under it, is not what it was."""
    UNSEALED = "unsealed"
    """An hour has been over for long and has no seal: nobody seals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyFinding:
    """One finding.

    Attributes:
        kind: Its kind.
        hour: The UTC hour of usage; None where it is not of one.
        event_id: The row; None where there is none, or too many to name.
        rows: The number of rows it is about.
        seal: The number of the seal concerned.
        customer: The row's customer, as far as that is still known.
        sku: Its SKU, likewise.
        task_id: Its task, likewise.
        amount_microcredits: The amount in the row now (removed: it must have been this), likewise.
        words: The finding, for people.
        money: Its meaning for money, and what to do.
    """

    kind: FindingKind
    hour: datetime | None = None
    event_id: UUID | None = None
    rows: int = 1
    seal: int | None = None
    customer: str | None = None
    sku: str | None = None
    task_id: str | None = None
    amount_microcredits: int | None = None
    words: str
    money: str


@dataclass(frozen=True, slots=True)
class Gap:
    """The difference of a bucket's rollup from the sum of its lines."""

    bucket: Bucket
    beyond: Totals

    @property
    def words(self) -> str:
        """The gap, for people."""
        customer, sku, outcome, reason = self.bucket
        of = f"{customer}, {sku}, {outcome}" + (f" ({reason})" if reason else "")
        return (
            f"the total of {of} has {_signed(self.beyond.events)} events and "
            f"{_credits(self.beyond.amount_microcredits)} credits against its lines"
        )


_NOTHING: Final = Totals()
_MOST_GAPS: Final = 3
_BY_TOTALS: Final = "invoices and reports go by the totals"


def gaps_of(lines: Mapping[Bucket, Totals], totals: Mapping[Bucket, Totals]) -> list[Gap]:
    """Find the buckets of an hour whose rollup is not the sum of its lines.

    Args:
        lines: Sums of the rows of the log.
        totals: The rollups.
    """
    found = []
    for bucket in sorted(lines.keys() | totals.keys()):
        summed, rolled_up = lines.get(bucket, _NOTHING), totals.get(bucket, _NOTHING)
        if summed != rolled_up:
            found.append(
                Gap(
                    bucket,
                    Totals(
                        rolled_up.events - summed.events,
                        rolled_up.quantity - summed.quantity,
                        rolled_up.amount_microcredits - summed.amount_microcredits,
                        rolled_up.shortfall_microcredits - summed.shortfall_microcredits,
                        rolled_up.cost_micros - summed.cost_micros,
                    ),
                )
            )
    return found


def changed(
    identifier: UUID, hour: datetime, seal: int | None, row: Mapping[str, Any], gaps: list[Gap]
) -> VerifyFinding:
    """Report a row that differs from the one that was logged."""
    if not gaps:
        money = (
            "the totals agree with the row as it is now: either they were changed with it, and it "
            "is billed as changed, or it is no figure that was changed"
        )
    else:
        own = _gap_of(row, gaps)
        first = sorted(gaps, key=lambda gap: gap is not own)
        money = f"{_gap_words(first)}: {_BY_TOTALS}, so the receipt does not show what is billed"
    return VerifyFinding(
        kind=FindingKind.CHANGED,
        hour=hour,
        event_id=identifier,
        seal=seal,
        **_facts(row),
        words=f"the row is not the one that was logged; it says {_price(row)} now",
        money=f"{money}; restore the row from a backup",
    )


def added(
    identifier: UUID, hour: datetime, row: Mapping[str, Any], gaps: list[Gap]
) -> VerifyFinding:
    """Report a row that the application never logged."""
    if _gap_of(row, gaps) is None:
        money = f"the totals have it: {row['customer_id']} is billed for it"
    else:
        money = "the totals do not have it: it is on the receipt and is not billed"
    return VerifyFinding(
        kind=FindingKind.ADDED,
        hour=hour,
        event_id=identifier,
        **_facts(row),
        words=f"the application did not log this row of {_price(row)}",
        money=f"{money}; if it was there before sealing began: billing seals adopt",
    )


def removed(
    identifier: UUID, hour: datetime, seal: int | None, gaps: list[Gap], missing: int
) -> VerifyFinding:
    """Report a row that was logged and is gone.

    Args:
        identifier: Its id.
        hour: The hour in that id.
        seal: The number of its seal; None where it had none yet.
        gaps: Of the hour.
        missing: The number of rows missing of the hour in all.
    """
    short = [gap for gap in gaps if gap.beyond.events > 0]
    customer = sku = amount = None
    if not short:
        money = "the totals do not have it either: it is not billed any more"
    else:
        money = f"{_gap_words(short)}: {_BY_TOTALS}, so it is billed and no receipt shows it"
    if len(short) == 1:
        customer, sku = short[0].bucket[:2]
        amount = short[0].beyond.amount_microcredits if missing == 1 else None
    return VerifyFinding(
        kind=FindingKind.REMOVED,
        hour=hour,
        event_id=identifier,
        seal=seal,
        customer=customer,
        sku=sku,
        amount_microcredits=amount,
        words="the row was logged and is not there",
        money=f"{money}; restore the row from a backup",
    )


def too_many(kind: FindingKind, hour: datetime, rows: int) -> VerifyFinding:
    """Report the rows of one hour beyond those that are named."""
    return VerifyFinding(
        kind=kind,
        hour=hour,
        rows=rows,
        words=f"{rows:,} more rows of this hour",
        money="as of those named",
    )


def broken(words: str, *, hour: datetime | None = None, seal: int | None = None) -> VerifyFinding:
    """Report a seal, or leaves under it, that changed."""
    return VerifyFinding(
        kind=FindingKind.CHAIN_BROKEN,
        hour=hour,
        seal=seal,
        rows=0,
        words=words,
        money="this hour's rows cannot be relied on by this seal; compare with an anchor kept "
        "elsewhere, a backup, or the archive",
    )


def unsealed(hour: datetime, rows: int, since: datetime) -> VerifyFinding:
    """Report rows that wait for a seal far longer than they should."""
    return VerifyFinding(
        kind=FindingKind.UNSEALED,
        hour=hour,
        rows=rows,
        words=f"{rows:,} rows wait for a seal since {since:%Y-%m-%d %H:%M} UTC",
        money="nothing is lost, but until they are sealed they could be changed together with "
        "their manifest; run billing seals now, and see that beat runs",
    )


def _gap_words(gaps: list[Gap]) -> str:
    more = f"; and {len(gaps) - _MOST_GAPS} more" if len(gaps) > _MOST_GAPS else ""
    return "; ".join(gap.words for gap in gaps[:_MOST_GAPS]) + more


def _gap_of(row: Mapping[str, Any], gaps: list[Gap]) -> Gap | None:
    bucket = (row["customer_id"], row["sku_id"], row["outcome"], row["reason"])
    return next((gap for gap in gaps if gap.bucket == bucket), None)


def _facts(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "customer": row["customer_id"],
        "sku": row["sku_id"],
        "task_id": row["task_id"],
        "amount_microcredits": row["amount_microcredits"],
    }


def _price(row: Mapping[str, Any]) -> str:
    credits = format_credits(row["amount_microcredits"])  # noqa: A001 - the word of the field
    return f"{row['quantity']:,} x {row['sku_id']}, {credits} credits"


def _credits(microcredits: int) -> str:
    return ("+" if microcredits > 0 else "") + format_credits(microcredits)


def _signed(number: int) -> str:
    return f"{number:+,}" if number else "0"
