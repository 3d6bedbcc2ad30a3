"""``billing dead``: messages that could not be billed, and replaying them after repair."""

from __future__ import annotations

import json as json_text
from typing import Annotated, Any, Final

import typer

from billing.cli.context import Json, container_of, sync
from billing.cli.output import (
    Column,
    document_of,
    moment,
    number,
    over,
    print_facts,
    print_json,
    say,
    show_table,
)
from billing.core.errors import InvalidValue
from billing.core.usage_event import DeadReason
from billing.usage_log.dead_letters import DeadLetter, ReplayOutcome

app = typer.Typer(no_args_is_help=True, help="Dead letters: what could not be billed, and why.")

_Reason = Annotated[DeadReason | None, typer.Option(help="Only those of this reason.")]


def _reason_and_task(letter: DeadLetter) -> Any:  # noqa: ANN401 - a cell
    return over(letter.reason + (" (replayed)" if letter.replayed_at else ""), letter.task_id)


_COLUMNS: Final = (
    number("#", "id"),
    Column("reason and task", _reason_and_task),
    Column("customer", "customer_id"),
    number("seen", "times_seen"),
    moment("last seen (UTC)", "last_seen_at"),
    Column("detail"),
)


@app.command("list")
def list_(
    context: typer.Context,
    reason: _Reason = None,
    limit: Annotated[int, typer.Option(help="The most to list.", min=1)] = 100,
    replayed: Annotated[
        bool, typer.Option("--replayed", help="Also those whose replay succeeded.")
    ] = False,
    json: Json = False,
) -> None:
    """List dead letters, the latest seen first."""
    letters = container_of(context).dead_letters
    found = letters.list(reason, limit=limit, include_replayed=replayed)
    show_table(json, "Dead letters", _COLUMNS, found, document=letter_document, empty="none open")
    counts = letters.counts()
    if not json and sum(counts.values()) > len(found):
        say("open: " + ", ".join(f"{each} {count:,}" for each, count in counts.items()))


@app.command()
def show(
    context: typer.Context,
    letter: Annotated[int, typer.Argument(help="Its number in the list.", metavar="ID")],
    json: Json = False,
) -> None:
    """Show one dead letter with the message as it came."""
    found = container_of(context).dead_letters.show(letter)
    body = (found.body or b"").decode("utf-8", "backslashreplace")
    if json:
        print_json(letter_document(found) | {"body": body})
        return
    print_facts(
        f"Dead letter {found.id}",
        [
            ("reason", found.reason),
            ("detail", found.detail),
            ("customer", found.customer_id),
            ("task", found.task_id),
            ("event", found.event_id),
            ("times seen", found.times_seen),
            ("first seen (UTC)", found.first_seen_at),
            ("last seen (UTC)", found.last_seen_at),
            ("replayed (UTC)", found.replayed_at),
        ],
    )
    say("message:")
    for line in _pretty(body).splitlines():
        say(f"  {line}")


@app.command()
def replay(
    context: typer.Context,
    letters: Annotated[
        list[int] | None, typer.Argument(help="Numbers in the list.", metavar="[ID]...")
    ] = None,
    reason: _Reason = None,
    json: Json = False,
) -> None:
    """Try messages again, by number or all of a reason. What is in the log is not billed twice."""
    if bool(letters) == (reason is not None):
        raise typer.BadParameter("give the numbers of dead letters, or --reason; not both")
    container = container_of(context)
    which = reason if reason is not None else _unique(letters or [])
    results = container.dead_letters.replay(which, container.writer)
    for customer in sorted(set[str]().union(*(each.late_customers for each in results))):
        sync(container, customer)
    show_table(
        json,
        "Replay",
        [number("#", "id"), Column("outcome"), Column("reason"), Column("detail")],
        results,
        document=lambda result: document_of(result, "id outcome reason detail"),
        empty="none open of that reason",
    )
    if any(each.outcome in _UNDONE for each in results):
        raise typer.Exit(1)


_UNDONE: Final = frozenset({ReplayOutcome.STILL_DEAD, ReplayOutcome.NOT_FOUND})


def letter_document(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter for machines, without its body."""
    return document_of(
        letter,
        "id reason detail event_id customer=customer_id task_id times_seen first_seen_at "
        "last_seen_at replayed_at",
    )


def _unique(letters: list[int]) -> list[int]:
    for each in letters:
        if each < 1:
            raise InvalidValue("ID", each, "use a number of billing dead list")
    return list(dict.fromkeys(letters))


def _pretty(body: str) -> str:
    try:
        return json_text.dumps(json_text.loads(body), indent=2)
    except (ValueError, RecursionError):
        return body
