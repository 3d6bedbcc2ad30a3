"""Submitting the plan's batches, in every way that a program has to say who pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self, assert_never

from celery import Celery, chord, group
from celery.utils import uuid

from billing.core.clock import Clock
from lab.demo.scenario import Batch, Call, Way
from lab.demo.tasks import DIGEST
from workers.billing_header import HEADER, BillingHeader, bill_to


@dataclass(frozen=True, slots=True)
class Ticket:
    """A submitted task."""

    task_id: str
    customer: str
    call: Call
    deliveries: int = 1


@dataclass(slots=True)
class Submitted:
    """What was submitted.

    ``bodies`` says whose chord it is, by the task id of its unmetered body; ``groups`` are the ids
    of groups and of chords' headers.
    """

    tickets: list[Ticket] = field(default_factory=list)
    bodies: dict[str, str] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)

    def __iadd__(self, other: Submitted) -> Self:
        """Both."""
        self.tickets += other.tickets
        self.bodies |= other.bodies
        self.groups += other.groups
        return self


def submit(app: Celery, batch: Batch, clock: Clock) -> Submitted:
    """Submit a batch.

    Args:
        app: The Celery app with the ingestion tasks.
        batch: What.
        clock: The time, for the header of what is delivered twice.
    """
    match batch.way:
        case Way.GROUP:
            return _group(app, batch)
        case Way.CHORD:
            return _chord(app, batch)
        case Way.BLOCK:
            with bill_to(batch.customer):
                return _one_by_one(app, batch)
        case Way.BILL_TO | Way.OPTION:
            return _one_by_one(app, batch)
        case Way.TWICE:
            return Submitted([_twice(app, batch.customer, call, clock) for call in batch.calls])
        case _:
            assert_never(batch.way)


def _one_by_one(app: Celery, batch: Batch) -> Submitted:
    found = Submitted()
    for call in batch.calls:
        task: Any = app.tasks[call.task]
        options = _options(call)
        if batch.way is Way.BILL_TO and not options:
            result = task.bill_to(batch.customer).delay(*call.args)
        elif batch.way is Way.BLOCK:
            result = task.delay(*call.args)
        else:
            result = task.apply_async(call.args, customer=batch.customer, **options)
        found.tickets.append(Ticket(result.id, batch.customer, call))
    return found


def _group(app: Celery, batch: Batch) -> Submitted:
    with bill_to(batch.customer):
        members: Any = group(_signatures(app, batch.calls)).apply_async()
    return Submitted(_tickets(members.results, batch), groups=[members.id])


def _chord(app: Celery, batch: Batch) -> Submitted:
    digest: Any = app.tasks[DIGEST]
    with bill_to(batch.customer):
        body: Any = chord(_signatures(app, batch.calls))(digest.s())
    header = body.parent
    return Submitted(_tickets(header.results, batch), {body.id: batch.customer}, [header.id])


def _twice(app: Celery, customer: str, call: Call, clock: Clock) -> Ticket:
    """What a broker does when a connection breaks before the acknowledgement: send it again."""
    task: Any = app.tasks[call.task]
    task_id = uuid()
    headers = {HEADER: BillingHeader(customer, clock.now()).to_message()}
    for _ in range(2):
        task.apply_async(call.args, task_id=task_id, headers=headers, **_options(call))
    return Ticket(task_id, customer, call, deliveries=2)


def _signatures(app: Celery, calls: Sequence[Call]) -> list[Any]:
    return [app.tasks[call.task].signature(call.args, **_options(call)) for call in calls]


def _tickets(results: Sequence[Any], batch: Batch) -> list[Ticket]:
    return [
        Ticket(result.id, batch.customer, call)
        for result, call in zip(results, batch.calls, strict=True)
    ]


def _options(call: Call) -> dict[str, Any]:
    return {} if call.soft_time_limit is None else {"soft_time_limit": call.soft_time_limit}
