"""``billing holds``: what is held for tasks that have not ended yet."""

from __future__ import annotations

from typing import Annotated

import typer

from billing.cli.context import Json, container_of
from billing.cli.output import Column, over, print_json, print_table, say
from billing.core.clock import from_ms, to_ms
from billing.core.credits import format_credits
from billing.core.reservation import HoldView

app = typer.Typer(no_args_is_help=True, help="Open holds: credits set aside for running tasks.")


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
    if json:
        print_json([hold_document(each, now_ms) for each in holds])
        return
    print_table(
        "Open holds",
        [
            Column("customer"),
            Column("SKU and task"),
            Column("admission", numeric=True),
            Column("credits", numeric=True),
            Column("expires (UTC)", whole=True),
        ],
        [
            (
                each.customer,
                over(each.sku, each.task_id),
                each.admission,
                format_credits(each.held_microcredits),
                from_ms(each.expires_at_ms),
            )
            for each in holds
        ],
        empty="none",
    )
    if holds:
        total = format_credits(sum(each.held_microcredits for each in holds))
        overdue = sum(each.expires_at_ms <= now_ms for each in holds)
        say(f"open: {len(holds):,}, credits held: {total}, past their time: {overdue:,}")


def hold_document(hold: HoldView, now_ms: int) -> dict[str, object]:
    """A hold for machines."""
    return {
        "task_id": hold.task_id,
        "customer": hold.customer,
        "sku": hold.sku,
        "state": hold.state.value,
        "admission": hold.admission,
        "held_microcredits": hold.held_microcredits,
        "settled_microcredits": hold.settled_microcredits,
        "cause": hold.cause,
        "expires_at": from_ms(hold.expires_at_ms),
        "overdue": hold.state.value == "held" and hold.expires_at_ms <= now_ms,
    }
