"""``billing``: the command. Results go to standard output; warnings and errors to standard error.

Exit codes: 0 done; 1 refused, not found or a server is away (with the remedy); 2 wrong usage.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from billing.cli import credits as credits_commands
from billing.cli import customers, dead, holds, local, reconcile, report, seals, skus, stripe
from billing.cli.api import api
from billing.cli.archive import archive, restore
from billing.cli.context import Session
from billing.cli.doctor import doctor
from billing.cli.explain import explain
from billing.cli.failures import CleanGroup
from billing.cli.metrics import metrics
from billing.cli.migrate import migrate
from billing.cli.output import say
from billing.cli.processes import consumer, relay
from billing.cli.receipt import receipt
from billing.cli.stripe_sandbox import stripe_sandbox
from billing.cli.usage import usage
from billing.cli.verify import verify

app = typer.Typer(
    cls=CleanGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Usage-based billing for Celery: who is billed for what, and where every event is.",
)

app.command()(migrate)
app.command()(doctor)
app.command()(metrics)
app.add_typer(customers.app, name="customers")
app.add_typer(skus.app, name="skus")
app.add_typer(credits_commands.app, name="credits")
app.command()(usage)
app.command()(receipt)
app.command()(explain)
app.add_typer(dead.app, name="dead")
app.add_typer(holds.app, name="holds")
app.add_typer(report.app, name="report")
app.add_typer(reconcile.app, name="reconcile")
app.add_typer(stripe.app, name="stripe")
app.command()(consumer)
app.command()(relay)
app.command()(api)
app.command()(verify)
app.add_typer(seals.app, name="seals")
app.command()(seals.proof)
app.command()(archive)
app.command()(restore)
app.add_typer(local.app, name="local")
app.command()(local.up)
app.command()(stripe_sandbox)


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
