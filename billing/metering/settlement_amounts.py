"""The figures of a settlement, and the events that they are of. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from billing.core.credit_lease import BatchSettlement, LeasedBatch
from billing.core.reservation import LineFigures, Settlement, SettleOutcome
from billing.core.usage_event import UsageEvent
from billing.transport.settled_figures import EncodedEvent, settled_event


def as_asked(outcome: SettleOutcome, events: Sequence[UsageEvent]) -> Settlement:
    """A settlement that the quota store has not decided: all that was asked."""
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


def decided(events: Sequence[UsageEvent], settlement: Settlement) -> list[EncodedEvent]:
    """The events with the figures the quota store decided, as the outbox has them."""
    figures = {line.line: line for line in settlement.lines}
    wires = settlement.wires or [event.to_wire() for event in events]
    return [
        settled_event(
            event,
            wire,
            amount=figures[event.line].amount_microcredits,
            shortfall=figures[event.line].shortfall_microcredits,
            quota_epoch=settlement.quota_epoch,
        )
        for event, wire in zip(events, wires, strict=True)
        if event.line in figures
    ]


def decided_or_asked(batch: LeasedBatch, settlement: BatchSettlement) -> list[EncodedEvent]:
    """The events of runs under leases for the journal: as decided, and a repeat's as asked.

    A repeat may be our own first try, whose answer was lost and which was charged in full as far as
    anybody knows here. Where it is not, the log drops it.
    """
    return [
        settled_event(
            event,
            wire,
            amount=line.amount_microcredits,
            shortfall=line.shortfall_microcredits,
            quota_epoch=settlement.quota_epoch,
        )
        for run, figures in zip(batch.runs, settlement.runs, strict=True)
        for event, wire, line in zip(
            run.events,
            run.encoded,
            as_asked(SettleOutcome.EXISTS, run.events).lines if figures.repeat else figures.lines,
            strict=True,
        )
    ]
