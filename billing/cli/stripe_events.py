"""``billing stripe events``: Stripe's events by webhook, and trying again those that were kept."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from billing.cli.context import Json, container_of, sync
from billing.cli.output import Column, document_of, moment, over, say, show, show_table
from billing.stripe_webhooks.processor import PROVIDER, Reception
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
    webhook_events = container_of(context).reporting.webhook_events
    found = webhook_events.list(PROVIDER, result=result, limit=limit)
    show_table(
        json,
        "Events told by Stripe",
        [
            Column("event and type", lambda one: over(one.event_id, one.type)),
            moment("result", "result"),
            moment("received (UTC)", "received_at"),
            Column("detail"),
        ],
        found,
        document=lambda one: document_of(
            one, "id=event_id type result detail happened_at received_at"
        ),
    )
    if any(each.result is EventResult.KEPT for each in found) and not json:
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
    detail = f": {received.detail}" if received.detail else ""
    show(
        json,
        document_of(received, "id=event_id type result=reception detail"),
        lambda: say(f"event {event}: {_WORDS[received.reception]}{detail}"),
    )
    if received.reception is Reception.KEPT:
        raise typer.Exit(1)
