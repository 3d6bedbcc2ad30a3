"""``billing holds``: credits held for tasks that have not ended yet."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from billing.cli.context import Json, container_of
from billing.cli.output import (
    Column,
    credits_column,
    document_of,
    moment,
    number,
    over,
    say,
    show_table,
)
from billing.core.clock import from_ms, to_ms
from billing.core.credits import format_credits
from billing.core.reservation import HoldState, HoldView

app = typer.Typer(no_args_is_help=True, help="Open holds: credits set aside for running tasks.")

_COLUMNS: Final = (
    Column("customer"),
    Column("SKU and task", lambda hold: over(hold.sku, hold.task_id)),
    number("admission"),
    credits_column("credits", "held_microcredits"),
    moment("expires (UTC)", lambda hold: from_ms(hold.expires_at_ms)),
)


@app.command("list")
def list_(
    context: typer.Context,
    customer: Annotated[str | None, typer.Option(help="Only this customer's.")] = None,
    json: Json = False,
) -> None:
    """List open holds, the next to expire first."""
    container = container_of(context)
    if customer is not None:
        container.customers.get(customer)
    holds = container.quota.open_holds(customer)
    now_ms = to_ms(container.clock.now())
    show_table(json, "Open holds", _COLUMNS, holds, document=lambda one: hold_document(one, now_ms))
    if holds and not json:
        total = format_credits(sum(each.held_microcredits for each in holds))
        overdue = sum(each.expires_at_ms <= now_ms for each in holds)
        say(f"open: {len(holds):,}, credits held: {total}, past their time: {overdue:,}")


def hold_document(hold: HoldView, now_ms: int) -> dict[str, Any]:
    """A hold for machines."""
    return document_of(
        hold,
        "task_id customer sku state admission held_microcredits settled_microcredits cause",
        expires_at=from_ms(hold.expires_at_ms),
        overdue=hold.state is HoldState.HELD and hold.expires_at_ms <= now_ms,
    )
