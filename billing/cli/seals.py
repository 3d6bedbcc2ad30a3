"""``billing seals`` and ``billing proof``: sealing by hand, anchors, and proofs for customers."""

from __future__ import annotations

import sys
from typing import Annotated, Any
from uuid import UUID

import typer

from billing.audit.seal_chain import ANCHOR_HEAD, Seal, anchor_line
from billing.audit.sealer import SealingResult
from billing.cli.context import Json, container_of
from billing.cli.output import document_of, print_json, say
from billing.core.errors import InvalidValue
from billing.core.periods import month_labelled

app = typer.Typer(no_args_is_help=True, help="Seals: what makes tampering with the log evident.")


def seal_document(seal: Seal | None) -> dict[str, Any] | None:
    """A seal for machines."""
    return document_of(seal, "number hash hour sealed_at rows adopted") if seal else None


@app.command()
def now(context: typer.Context, json: Json = False) -> None:
    """Seal every hour that is over; beat does this by itself."""
    _print(container_of(context).seal(), json)


@app.command()
def export(
    context: typer.Context,
    after: Annotated[int, typer.Option(help="Only seals with a higher number.", min=0)] = 0,
) -> None:
    """Print number and hash of every seal: an anchor, to be kept where nobody here can write.

    With --after the output continues an anchor file that has the seals up to that number.
    """
    if not after:
        sys.stdout.write(f"{ANCHOR_HEAD}\n")
    for seal, kept in container_of(context).audit.seals(after):
        sys.stdout.write(f"{anchor_line(seal.number, kept)}\n")


@app.command()
def adopt(
    context: typer.Context,
    month: Annotated[str, typer.Argument(help="A UTC month.", metavar="YYYY-MM")],
    json: Json = False,
) -> None:
    """Seal rows that no application said it logged, as they are now. Look at them first.

    For a log that is older than sealing, once; and for rows that billing verify found as added and
    that somebody has found to be right. Their seals say that they were adopted.
    """
    container = container_of(context)
    _print(container.audit.adopt(month_labelled(month), container.clock.now()), json)


def proof(
    context: typer.Context,
    event: Annotated[str, typer.Argument(help="A receipt line's event_id.", metavar="EVENT_ID")],
) -> None:
    """Print the proof that a receipt line is under a seal, as JSON for scripts/check_proof.py."""
    try:
        identifier = UUID(event)
    except ValueError:
        raise InvalidValue("EVENT_ID", event, "use the event_id of a receipt's line") from None
    print_json(container_of(context).audit.prover.proof(identifier))


def _print(result: SealingResult, json: bool) -> None:
    if json:
        print_json(document_of(result, "seals rows", head=seal_document(result.head)))
        return
    say(f"{result.rows:,} rows sealed under {result.seals:,} seals")
    if result.head is not None:
        say(f"newest seal: {result.head.number}, {result.head.hash.hex()}")
