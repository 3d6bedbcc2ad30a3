"""``billing explain``: why a task was admitted or denied, what it cost, where its event is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Final, TypeVar, cast

import redis
import sqlalchemy as sa
import typer

from billing.cli.context import Json, container_of
from billing.cli.holds import hold_document
from billing.cli.output import Column, document_of, number, print_json, print_table, say, warn
from billing.cli.task_timeline import TaskRecords, TimelineStep, timeline
from billing.container import Container
from billing.core.clock import to_ms
from billing.core.credits import format_credits
from billing.core.errors import NotFound, QuotaUnavailable
from billing.core.reservation import AccountView, HoldView
from billing.core.sku import Sku
from billing.core.usage_event import UsageEvent
from billing.core.usage_event_json import from_wire
from billing.postgres.schema import dead_letters
from billing.redis.keys import shard_of
from billing.transport.outbox import UNREADABLE, entry_event
from billing.usage_log.dead_letters import DeadLetter

_PAGE: Final = 500
_MOST_WAITING: Final = 50_000
"""Entries of one shard's outbox that are looked through: a relay that is away for an hour."""

_Answer = TypeVar("_Answer")


def explain(
    context: typer.Context,
    task: Annotated[str, typer.Argument(help="Celery's task id.", metavar="TASK_ID")],
    customer: Annotated[
        str | None, typer.Option(help="Whose task it is; found out without.")
    ] = None,
    json: Json = False,
) -> None:
    """Tell what became of a task: admitted or denied and why, its cost, where its event is."""
    container = container_of(context)
    records = look_up(container, task, customer)
    if not records.anything and "\x00" not in task:
        records = in_archives(container, task, records)
    for error in records.unanswered:
        warn(f"incomplete: {error}")
    if not records.anything:
        raise NotFound(
            "trace of task",
            task,
            "it never came here, or is older than the log and the holds remembered",
        )
    steps = timeline(records)
    if json:
        print_json(_document(records, steps, to_ms(container.clock.now())))
        return
    say(f"Task {task} of customer {records.customer or 'unknown'}", style="bold")
    for step in steps:
        say(f"- {step.words}")
    if records.account is not None:
        _print_account(records.account)


def look_up(container: Container, task: str, customer: str | None) -> TaskRecords:
    """Gather the records of a task in PostgreSQL and Redis."""
    unanswered: list[str] = []
    # PostgreSQL can neither keep a NUL nor compare with one.
    is_loggable = "\x00" not in task
    logged = container.receipts.for_task(task) if is_loggable else []
    dead = _dead_letters(container, task) if is_loggable else []
    owners = [each.customer for each in logged] + [each.customer_id for each in dead]
    owner = customer or next((each for each in owners if each), None)
    candidates = [owner] if owner else [each.id for each in container.customers.list()]
    hold = _ask(unanswered, partial(_hold, container, candidates, task), None)
    if hold is not None:
        candidates = [hold.customer]
    nothing: list[UsageEvent] = []
    waiting = _ask(unanswered, partial(_waiting, container, candidates, task), nothing)
    owner = next((each.customer for each in (hold, *waiting) if each), owner)
    account = _ask(unanswered, lambda: container.quota.account(owner) if owner else None, None)
    return TaskRecords(
        task_id=task,
        customer=owner,
        logged=logged,
        waiting=waiting,
        dead=dead,
        hold=hold,
        account=account,
        prices=_prices(container.catalog.snapshot(), [*logged, *waiting]),
        unanswered=list(dict.fromkeys(unanswered)),
    )


def in_archives(container: Container, task: str, records: TaskRecords) -> TaskRecords:
    """Add the lines of archived months, which are read through for them."""
    logged = container.receipts.archived_task(task)
    if not logged:
        return records
    prices = _prices(container.catalog.snapshot(), logged)
    return replace(records, customer=logged[0].customer, logged=logged, prices=prices)


def _ask(unanswered: list[str], question: Callable[[], _Answer], otherwise: _Answer) -> _Answer:
    try:
        return question()
    except (QuotaUnavailable, redis.RedisError) as error:
        unanswered.append(f"Redis did not answer ({error})")
        return otherwise


def _prices(skus: dict[str, Sku], facts: Iterable[Any]) -> dict[str, int]:
    return {
        each.sku: skus[each.sku].unit_price_at(each.metered_at)
        for each in facts
        if each.sku in skus and skus[each.sku].prices
    }


def _dead_letters(container: Container, task: str) -> list[DeadLetter]:
    query = sa.select(dead_letters.c.id).where(dead_letters.c.task_id == task)
    with container.engine.connect() as connection:
        ids: Sequence[int] = connection.execute(query.order_by(dead_letters.c.id)).scalars().all()
    return [container.dead_letters.show(each) for each in ids]


def _hold(container: Container, candidates: Sequence[str], task: str) -> HoldView | None:
    holds = (container.quota.hold(customer, task) for customer in candidates)
    return next((hold for hold in holds if hold is not None), None)


def _waiting(container: Container, candidates: Sequence[str], task: str) -> list[UsageEvent]:
    """The task's events in the outboxes of these customers; only reads."""
    shards = sorted({shard_of(customer) for customer in candidates})
    return [event for shard in shards for event in _waiting_in(container, shard, task)]


def _waiting_in(container: Container, shard: int, task: str) -> Iterator[UsageEvent]:
    start, looked_at = "-", 0
    while looked_at < _MOST_WAITING:
        # redis-py's types allow for decoded and for empty answers; this client gives neither.
        page: list[tuple[bytes, dict[bytes, bytes]]] = cast(
            "Any", container.redis.xrange(container.keys.out(shard), min=start, count=_PAGE)
        )
        for _, fields in page:
            event = _event_of(fields, task)
            if event is not None:
                yield event
        looked_at += len(page)
        if len(page) < _PAGE:
            return
        start = f"({page[-1][0].decode()}"


def _event_of(fields: dict[bytes, bytes], task: str) -> UsageEvent | None:
    try:
        event = from_wire(entry_event(fields).wire)
    except UNREADABLE:
        # The relay puts such an entry aside and says so; here it is only not the one looked for.
        return None
    return event if event.task_id == task else None


def _print_account(account: AccountView) -> None:
    say(
        f"Balance in Redis at present (epoch {account.epoch}): "
        f"granted {format_credits(account.granted_microcredits)} "
        f"- settled {format_credits(account.settled_microcredits)} "
        f"- held {format_credits(account.held_microcredits)} "
        f"= available {format_credits(account.available_microcredits)}"
        + (", suspended" if account.suspended else "")
    )
    if account.budgets:
        print_table(
            "Budgets of the month (credits)",
            [Column("SKU"), number("limit"), number("spent or held")],
            [
                (sku, format_credits(limit), format_credits(account.spent.get(sku, 0)))
                for sku, limit in sorted(account.budgets.items())
            ],
        )


def _document(
    records: TaskRecords, steps: Sequence[TimelineStep], now_ms: int
) -> dict[str, object]:
    account = records.account
    return {
        "task_id": records.task_id,
        "customer": records.customer,
        "story": steps,
        "hold": hold_document(records.hold, now_ms) if records.hold else None,
        "balance": account
        and document_of(
            account,
            "epoch suspended granted_microcredits settled_microcredits held_microcredits "
            "available_microcredits budgets_microcredits=budgets spent_microcredits=spent",
        ),
        "unanswered": list(records.unanswered),
    }
