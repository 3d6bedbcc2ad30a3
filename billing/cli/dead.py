"""``billing dead``: what could not be billed, and replaying it after repair."""

from __future__ import annotations

import json as json_text
from typing import Annotated

import typer

from billing.cli.context import Json, container_of, sync
from billing.cli.output import Column, over, print_facts, print_json, print_table, say
from billing.core.errors import InvalidValue
from billing.core.usage_event import DeadReason
from billing.usage_log.dead_letters import DeadLetter, ReplayOutcome, ReplayResult

app = typer.Typer(no_args_is_help=True, help="Dead letters: what could not be billed, and why.")

_Reason = Annotated[DeadReason | None, typer.Option(help="Only those of this reason.")]


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
    if json:
        print_json([letter_document(each) for each in found])
        return
    print_table(
        "Dead letters",
        [
            Column("#", numeric=True),
            Column("reason and task"),
            Column("customer"),
            Column("seen", numeric=True),
            Column("last seen (UTC)", whole=True),
            Column("detail"),
        ],
        [
            (
                each.id,
                over(each.reason.value + (" (replayed)" if each.replayed_at else ""), each.task_id),
                each.customer_id,
                each.times_seen,
                each.last_seen_at,
                each.detail,
            )
            for each in found
        ],
        empty="none open",
    )
    counts = letters.counts()
    if sum(counts.values()) > len(found):
        say("open: " + ", ".join(f"{each.value} {count:,}" for each, count in counts.items()))


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
        print_json({**letter_document(found), "body": body})
        return
    print_facts(
        f"Dead letter {found.id}",
        [
            ("reason", found.reason.value),
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
    if json:
        print_json([_result_document(each) for each in results])
    else:
        print_table(
            "Replay",
            [Column("#", numeric=True), Column("outcome"), Column("reason"), Column("detail")],
            [
                (
                    each.id,
                    each.outcome.value,
                    each.reason.value if each.reason else None,
                    each.detail,
                )
                for each in results
            ],
            empty="none open of that reason",
        )
    if any(each.outcome in _UNDONE for each in results):
        raise typer.Exit(1)


_UNDONE = frozenset({ReplayOutcome.STILL_DEAD, ReplayOutcome.NOT_FOUND})


def letter_document(letter: DeadLetter) -> dict[str, object]:
    """A dead letter for machines, without its body."""
    return {
        "id": letter.id,
        "reason": letter.reason.value,
        "detail": letter.detail,
        "event_id": letter.event_id,
        "customer": letter.customer_id,
        "task_id": letter.task_id,
        "times_seen": letter.times_seen,
        "first_seen_at": letter.first_seen_at,
        "last_seen_at": letter.last_seen_at,
        "replayed_at": letter.replayed_at,
    }


def _result_document(result: ReplayResult) -> dict[str, object]:
    return {
        "id": result.id,
        "outcome": result.outcome.value,
        "reason": result.reason.value if result.reason else None,
        "detail": result.detail,
    }


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
