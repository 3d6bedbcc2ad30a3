"""The timeline of a task, from the records that each server has of it. Pure.

The places an event can be in, in the order it passes them: *held* (no event yet), *outbox* (in
Redis, not confirmed by RabbitMQ), *on_the_way* (with RabbitMQ, or in a node's spool), *log*. Beside
them *dead_letter*: it arrived and could not be logged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

from billing.cli.output import instant
from billing.core.clock import from_ms
from billing.core.credits import format_credits
from billing.core.errors import DenialReason
from billing.core.money import format_cost
from billing.core.reservation import AccountView, HoldState, HoldView
from billing.core.usage_event import Outcome, UsageEvent
from billing.usage_log.dead_letters import DeadLetter
from billing.usage_log.receipts import ReceiptLine


class Place(StrEnum):
    """The place an event is in."""

    HELD = "held"
    OUTBOX = "outbox"
    ON_THE_WAY = "on_the_way"
    LOG = "log"
    DEAD_LETTER = "dead_letter"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecords:
    """Everything the servers have of a task.

    ``prices`` are microcredits a unit, by SKU, when it was metered.
    """

    task_id: str
    customer: str | None
    logged: Sequence[ReceiptLine] = ()
    waiting: Sequence[UsageEvent] = ()
    dead: Sequence[DeadLetter] = ()
    hold: HoldView | None = None
    account: AccountView | None = None
    prices: Mapping[str, int] = field(default_factory=dict)
    unanswered: Sequence[str] = ()
    """Servers that did not answer, with their error: the timeline may be incomplete."""

    @property
    def anything(self) -> bool:
        """True where any server has a record of this task."""
        return bool(self.logged or self.waiting or self.dead or self.hold)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineStep:
    """One line of the task, or a hold without one, in words and figures."""

    place: Place
    since: datetime | None
    line: str
    sku: str
    outcome: str
    reason: str
    quantity: int | None = None
    unit_price_microcredits: int | None = None
    amount_microcredits: int | None = None
    shortfall_microcredits: int | None = None
    held_microcredits: int | None = None
    cost_micros: int | None = None
    currency: str | None = None
    words: str


_Fact = UsageEvent | ReceiptLine

_DENIED: Final = {
    DenialReason.INSUFFICIENT_CREDITS: "the credits available were less than what was to be held",
    DenialReason.BUDGET_EXCEEDED: "the month's budget over all SKUs was used up",
    DenialReason.SKU_BUDGET_EXCEEDED: "the month's budget of this SKU was used up",
    DenialReason.CUSTOMER_SUSPENDED: "the customer was suspended",
    DenialReason.UNKNOWN_CUSTOMER: "there was no such customer",
    DenialReason.REVOKED: "the task had been revoked",
    DenialReason.QUOTA_UNAVAILABLE: "the balance could not be asked, and its SKU says deny",
}


def timeline(records: TaskRecords) -> list[TimelineStep]:
    """The steps, line by line: settled ones first, open ones last."""
    logged = {each.id for each in records.logged}
    steps = [
        _step(records, each, Place.LOG, each.logged_at, _logged_words(each))
        for each in records.logged
    ]
    steps += [
        _step(records, each, Place.OUTBOX, each.finished_at, _WAITS)
        for each in records.waiting
        if each.id not in logged
    ]
    steps += [_dead(each) for each in records.dead if each.replayed_at is None]
    return steps + list(_of_hold(records, steps))


_WAITS: Final = "waits in the outbox for RabbitMQ's confirm"


def _step(
    records: TaskRecords, fact: _Fact, place: Place, since: datetime | None, where: str
) -> TimelineStep:
    return TimelineStep(
        place=place,
        since=since,
        line=fact.line,
        sku=fact.sku,
        outcome=fact.outcome.value,
        reason=fact.reason,
        quantity=fact.quantity,
        unit_price_microcredits=records.prices.get(fact.sku),
        amount_microcredits=fact.amount_microcredits,
        shortfall_microcredits=fact.shortfall_microcredits,
        held_microcredits=fact.held_microcredits,
        cost_micros=fact.cost_micros,
        currency=fact.currency,
        words=f"{_what(records, fact)}; its event {where}",
    )


def _logged_words(line: ReceiptLine) -> str:
    return f"is in the log since {instant(line.logged_at)} UTC"


def _what(records: TaskRecords, fact: _Fact) -> str:
    if fact.outcome is Outcome.DENIED:
        return f"denied: {_denial(fact)}; its body did not run and it cost nothing"
    cost = (
        f", provider cost {format_cost(fact.cost_micros, fact.currency)}"
        if fact.cost_micros
        else ""
    )
    if fact.outcome is Outcome.FAILED and not fact.amount_microcredits:
        return f"admitted, then failed ({fact.reason}): nothing was charged{cost}"
    ended = "succeeded" if fact.outcome is Outcome.SUCCEEDED else f"failed ({fact.reason})"
    return f"admitted and {ended}: {_charge(records, fact)}{cost}"


def _denial(fact: _Fact) -> str:
    try:
        words = _DENIED[DenialReason(fact.reason)]
    except ValueError:
        words = fact.reason
    needed = fact.dimensions.get("needed_microcredits", "")
    left = fact.dimensions.get("left_microcredits", "")
    if needed.isdecimal() and left.lstrip("-").isdecimal():
        words += f" (needed {format_credits(int(needed))}, left {format_credits(int(left))})"
    return f"{fact.reason}, {words}" if words != fact.reason else words


def _charge(records: TaskRecords, fact: _Fact) -> str:
    price = records.prices.get(fact.sku)
    words = f"{fact.quantity:,} x {fact.sku}"
    if price is not None:
        words += f" at {format_credits(price)}"
    words += f" = {format_credits(fact.amount_microcredits + fact.shortfall_microcredits)} credits"
    if fact.shortfall_microcredits:
        words += (
            f", of which {format_credits(fact.amount_microcredits)} were charged: "
            "hold and balance covered no more"
        )
    if fact.degraded:
        return f"{words}; it ran without a hold while Redis was away"
    if fact.held_microcredits:
        words += f" of {format_credits(fact.held_microcredits)} held"
    return words


def _dead(letter: DeadLetter) -> TimelineStep:
    return TimelineStep(
        place=Place.DEAD_LETTER,
        since=letter.first_seen_at,
        line="",
        sku="",
        outcome="",
        reason=letter.reason.value,
        words=f"dead letter #{letter.id} ({letter.reason.value}): {letter.detail}; after repair: "
        f"billing dead replay {letter.id}",
    )


def _of_hold(records: TaskRecords, steps: Sequence[TimelineStep]) -> Iterator[TimelineStep]:
    """Steps that only the hold shows: it is open, has expired, or its event is nowhere."""
    hold = records.hold
    if hold is None:
        return
    held = format_credits(hold.held_microcredits)
    until = f"{instant(from_ms(hold.expires_at_ms))} UTC"
    if hold.state is HoldState.HELD:
        yield _hold_step(
            hold,
            Place.HELD,
            f"admitted (admission {hold.admission}): {held} credits are held until {until}; it "
            "runs, or its worker is gone and the hold will expire; there is no event yet",
        )
    elif hold.state is HoldState.EXPIRED:
        yield _hold_step(
            hold,
            Place.HELD,
            f"admission {hold.admission} expired at {until}: the credits were given back and "
            "nothing was charged for it",
        )
    elif hold.admission and not _has_end(hold, steps):
        ended = "settled" if hold.state is HoldState.SETTLED else f"released ({hold.cause})"
        amount = format_credits(hold.settled_microcredits)
        yield _hold_step(
            hold,
            Place.ON_THE_WAY,
            f"{ended}, {amount} of {held} credits charged; its event has left the outbox and is "
            "not in the log yet: with RabbitMQ, or in a node's spool (billing doctor)",
        )
    elif not hold.admission:
        yield _hold_step(
            hold,
            Place.HELD,
            f"{hold.cause} before it was admitted: it will not be admitted any more",
        )


def _has_end(hold: HoldView, steps: Sequence[TimelineStep]) -> bool:
    """Look in the steps for the event that ended this hold (or a dead letter, which may be it)."""
    for step in steps:
        if step.place is Place.DEAD_LETTER:
            return True
        if hold.state is HoldState.SETTLED and step.line == step.sku:
            return True
        if hold.state is HoldState.RELEASED and step.line.endswith(f":{hold.admission}"):
            return True
    return False


def _hold_step(hold: HoldView, place: Place, words: str) -> TimelineStep:
    return TimelineStep(
        place=place,
        since=None,
        line="",
        sku=hold.sku,
        outcome=hold.state.value,
        reason=hold.cause,
        amount_microcredits=hold.settled_microcredits,
        held_microcredits=hold.held_microcredits,
        words=words,
    )
