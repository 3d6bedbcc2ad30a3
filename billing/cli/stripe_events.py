"""``billing stripe events``: what Stripe has told by webhook, and trying what was kept again."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from billing.cli.context import Json, container_of, sync
from billing.cli.output import Column, over, print_json, print_table, say
from billing.core.clock import format_instant
from billing.stripe_webhooks.event_store import WebhookEvent
from billing.stripe_webhooks.processor import PROVIDER, Received, Reception
from billing.stripe_webhooks.stripe_event import EventResult

app = typer.Typer(invoke_without_command=True, help="What Stripe has told by webhook.")

_WORDS: Final = {
    Reception.DONE: "done",
    Reception.IGNORED: "there is nothing to do about it",
    Reception.KEPT: "still not possible",
    Reception.ALREADY: "it was dealt with before",
}


@app.callback()
def events(
    context: typer.Context,
    result: Annotated[EventResult | None, typer.Option(help="Only those with this result.")] = None,
    limit: Annotated[int, typer.Option(help="The most to list.", min=1)] = 100,
    json: Json = False,
) -> None:
    """List what Stripe has told by webhook, the newest first; kept ones wait for a person."""
    if context.invoked_subcommand is not None:
        return
    told = container_of(context).reporting.webhook_events
    found = told.list(PROVIDER, result=result, limit=limit)
    if json:
        print_json([event_document(each) for each in found])
        return
    print_table(
        "Events told by Stripe",
        [
            Column("event and type"),
            Column("result", whole=True),
            Column("received (UTC)", whole=True),
            Column("detail"),
        ],
        [
            (over(each.event_id, each.type), each.result.value, each.received_at, each.detail)
            for each in found
        ],
        empty="none",
    )
    if any(each.result is EventResult.KEPT for each in found):
        say("kept ones are tried again with: billing stripe events retry EVENT_ID")


@app.command()
def retry(
    context: typer.Context,
    event: Annotated[str, typer.Argument(help="An event that was kept.", metavar="EVENT_ID")],
    json: Json = False,
) -> None:
    """Try an event again that was kept. Exits with 1 where it still is not possible."""
    container = container_of(context)
    received = container.reporting.webhook_processor.retry(event)
    for customer in sorted(received.customers):
        sync(container, customer)
    if json:
        print_json(_received_document(received))
    else:
        detail = f": {received.detail}" if received.detail else ""
        say(f"event {event}: {_WORDS[received.reception]}{detail}")
    if received.reception is Reception.KEPT:
        raise typer.Exit(1)


def event_document(event: WebhookEvent) -> dict[str, object]:
    """An event for machines."""
    return {
        "id": event.event_id,
        "type": event.type,
        "result": event.result.value,
        "detail": event.detail,
        "happened_at": format_instant(event.happened_at),
        "received_at": format_instant(event.received_at),
    }


def _received_document(received: Received) -> dict[str, object]:
    return {
        "id": received.event_id,
        "type": received.type,
        "result": received.reception.value,
        "detail": received.detail,
    }
