"""The figures of a settlement, and the events that they are of. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from billing.core.reservation import LineFigures, Settlement, SettleOutcome
from billing.core.usage_event import UsageEvent


def as_asked(outcome: SettleOutcome, events: Sequence[UsageEvent]) -> Settlement:
    """What is known of a settlement that the quota store has not decided."""
    return Settlement(
        outcome=outcome,
        lines=tuple(
            LineFigures(
                line=event.line,
                amount_microcredits=event.amount_microcredits,
                shortfall_microcredits=0,
            )
            for event in events
        ),
        quota_epoch=0,
    )


def are_of(events: Sequence[UsageEvent], settlement: Settlement) -> bool:
    """Whether the settlement may be of these events: the same lines, each asked the same amount."""
    asked = [(event.line, event.amount_microcredits) for event in events]
    return asked == [
        (line.line, line.amount_microcredits + line.shortfall_microcredits)
        for line in settlement.lines
    ]


def decided(events: Sequence[UsageEvent], settlement: Settlement) -> list[UsageEvent]:
    """The events with the figures the quota store decided, as the outbox has them."""
    figures = {line.line: line for line in settlement.lines}
    return [
        event.settled(
            amount=figures[event.line].amount_microcredits,
            shortfall=figures[event.line].shortfall_microcredits,
            quota_epoch=settlement.quota_epoch,
        )
        for event in events
        if event.line in figures
    ]
