"""``billing``: the command. Results go to standard output; warnings and errors to standard error.

Exit codes: 0 done; 1 refused, not found or a server is away (with the remedy); 2 wrong usage.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated, Any, Final

import typer

from billing.cli.command_table import CommandTable
from billing.cli.context import Session
from billing.cli.failures import CleanGroup
from billing.cli.output import say

COMMANDS: Final = {
    "migrate": "migrate:migrate",
    "doctor": "doctor:doctor",
    "metrics": "metrics:metrics",
    "customers": "customers:app",
    "skus": "skus:app",
    "credits": "credits:app",
    "usage": "usage:usage",
    "receipt": "receipt:receipt",
    "explain": "explain:explain",
    "dead": "dead:app",
    "holds": "holds:app",
    "report": "report:app",
    "reconcile": "reconcile:app",
    "stripe": "stripe:app",
    "consumer": "processes:consumer",
    "relay": "processes:relay",
    "api": "api:api",
    "verify": "verify:verify",
    "seals": "seals:app",
    "proof": "seals:proof",
    "archive": "archive:archive",
    "restore": "archive:restore",
    "local": "local:app",
    "up": "local:up",
    "stripe-sandbox": "stripe_sandbox:stripe_sandbox",
}
"""Each command's module and the function or ``typer.Typer`` in it."""


class BillingGroup(CleanGroup):
    """The ``billing`` command: it loads a command's module when that command is looked up."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - typer's own
        super().__init__(**settings)
        self.commands: Any = CommandTable(COMMANDS)


app = typer.Typer(
    cls=BillingGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Usage-based billing for Celery: who is billed for what, and where every event is.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"weighbridge {version('weighbridge')}")
        raise typer.Exit


@app.callback()
def begin(
    context: typer.Context,
    debug: Annotated[  # noqa: ARG001 - read by CleanGroup, from the context
        bool, typer.Option("--debug", help="Show the traceback of an error.")
    ] = False,
    show_version: Annotated[  # noqa: ARG001 - its callback has done it
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Usage-based billing for Celery: who is billed for what, and where every event is."""
    session = Session()
    context.obj = session
    context.call_on_close(session.close)


def main() -> None:
    """The entry point of the ``billing`` command."""
    sys.exit(app())
