"""Facts about one run of a task, and the answer it got when it asked to run. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from billing.core.credit_lease import LeasedAdmission
from billing.core.errors import DenialReason, InvalidValue
from billing.core.event_ids import event_id
from billing.core.sku import Sku
from billing.core.usage_event import Outcome, UsageEvent, denied_line


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """Who a task is, for whom it runs, and when it counts: all that its events have in common."""

    task_id: str
    customer: str
    metered_at: datetime
    task_name: str = ""
    root_id: str | None = None
    parent_id: str | None = None
    group_id: str | None = None
    attempt: int = 0
    worker: str = ""

    def event(
        self,
        *,
        sku: str,
        line: str,
        outcome: Outcome,
        **figures: Any,  # noqa: ANN401 - the remaining fields of UsageEvent, by name
    ) -> UsageEvent:
        """The event of one line of this task; its id follows from the facts alone."""
        return UsageEvent(
            id=event_id(self.task_id, line, self.metered_at),
            customer=self.customer,
            sku=sku,
            line=line,
            outcome=outcome,
            task_id=self.task_id,
            task_name=self.task_name,
            root_id=self.root_id,
            parent_id=self.parent_id,
            group_id=self.group_id,
            attempt=self.attempt,
            worker=self.worker,
            **figures,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The answer to a task that asked to run. ``number`` counts its admissions from 1.

    ``needed_microcredits`` is what was asked for, ``left_microcredits`` what the ``reason`` had
    left.
    ``degraded`` admissions hold nothing: Redis was away and the SKU's policy allows some.
    """

    facts: TaskFacts
    sku: Sku
    started_at: datetime
    reason: DenialReason | None = None
    number: int = 0
    needed_microcredits: int = 0
    held_microcredits: int = 0
    left_microcredits: int = 0
    degraded: bool = False
    repeat: bool = False
    """The task was billed before; whatever it records costs nothing more."""
    from_lease: LeasedAdmission | None = None
    """Where it was admitted from a lease."""
    contended: bool = False
    """Refused while other processes had leases: what they do not use is soon there again."""

    @property
    def admitted(self) -> bool:
        """Whether the body may run."""
        return self.reason is None

    def admitted_from(self, leased: LeasedAdmission) -> Admission:
        """This one, admitted from a lease."""
        # dataclasses.replace does the same in four times the time.
        return Admission(
            facts=self.facts,
            sku=self.sku,
            started_at=self.started_at,
            # Nobody counts a task's admissions here; its attempts tell its failures apart.
            number=self.facts.attempt + 1,
            needed_microcredits=self.needed_microcredits,
            held_microcredits=self.needed_microcredits,
            from_lease=leased,
        )

    def denial(self, *, currency: str) -> UsageEvent:
        """The event of this refusal: its reason, and cost 0."""
        if self.reason is None:
            raise InvalidValue("reason", None, "only a refused admission has a denial")
        return self.facts.event(
            sku=self.sku.id,
            line=denied_line(self.sku.id, self.reason),
            outcome=Outcome.DENIED,
            reason=self.reason.value,
            # For who asks later why; a denial's fingerprint leaves them out.
            dimensions={
                "needed_microcredits": str(self.needed_microcredits),
                "left_microcredits": str(self.left_microcredits),
            },
            currency=currency,
            started_at=self.started_at,
            finished_at=self.started_at,
        )
