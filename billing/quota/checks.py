"""Checks of what a quota store is asked, pure; the same for every implementation.

A wrong amount must not reach a balance: a negative one would make credits.
"""

from __future__ import annotations

from collections.abc import Sequence

from billing.core.credit_lease import LeasedBatch
from billing.core.credits import check_microcredits
from billing.core.errors import InvalidValue
from billing.core.reservation import SYNC_ONLY, AccountState, HoldRequest
from billing.core.usage_event import UsageEvent


def check_request(request: HoldRequest) -> None:
    """Refuse a hold of a wrong amount or of a time to live that is no time.

    Raises:
        InvalidValue: Names the field.
    """
    check_microcredits(request.amount_microcredits, field="amount_microcredits")
    if request.ttl_seconds <= 0:
        raise InvalidValue("ttl_seconds", request.ttl_seconds, "use one second or more")


def check_lines(customer: str, task_id: str, events: Sequence[UsageEvent]) -> None:
    """Refuse a settle whose events are of another task, or of which one line is there twice.

    Raises:
        InvalidValue: Names the field.
    """
    seen: set[str] = set()
    for event in events:
        check_event(customer, event)
        if event.task_id != task_id:
            raise InvalidValue("task_id", event.task_id, f"this is task {task_id}")
        if event.line in seen:
            raise InvalidValue("line", event.line, "give each line of a task once")
        seen.add(event.line)


def check_batch(batch: LeasedBatch) -> None:
    """Refuse to settle runs of which one could not be settled by itself.

    Raises:
        InvalidValue: Names the field.
    """
    for run in batch.runs:
        check_microcredits(run.promised_microcredits, field="promised_microcredits")
        if not run.events:
            raise InvalidValue("events", run.events, "give a run its events")
        check_lines(batch.customer, run.events[0].task_id, run.events)


def check_event(customer: str, event: UsageEvent, *, free: bool = False) -> None:
    """Refuse an event of another customer or of a wrong amount; if ``free``, of any amount.

    Raises:
        InvalidValue: Names the field.
    """
    if event.customer != customer:
        raise InvalidValue("customer", event.customer, f"this is the account of {customer}")
    check_microcredits(event.amount_microcredits, field="amount_microcredits")
    if free and event.amount_microcredits:
        raise InvalidValue(
            "amount_microcredits", event.amount_microcredits, "only a settle can charge; use 0"
        )


def check_state(state: AccountState) -> None:
    """Refuse an account whose figures the store cannot hold exactly.

    Raises:
        InvalidValue: Names the field.
    """
    check_microcredits(state.granted_microcredits, field="granted_microcredits")
    # Below zero where the balance counted what the log had already (``quota_recounts``).
    check_microcredits(abs(state.late_microcredits), field="late_microcredits")
    if state.settled_microcredits != SYNC_ONLY:
        settled = state.settled_microcredits
        check_microcredits(settled, field="settled_microcredits")
        check_microcredits(settled + state.late_microcredits, field="settled and late microcredits")
    for sku, amount in (*state.budgets.items(), *state.spent.items()):
        check_microcredits(amount, field=f"microcredits of {sku}")
    if state.period_start_ms >= state.period_end_ms:
        raise InvalidValue("period_end_ms", state.period_end_ms, "end the period after its start")
