"""``billing stripe``: setting Stripe up."""

from __future__ import annotations

from typing import Annotated

import typer

from billing.cli.context import Json, container_of
from billing.cli.output import show
from billing.cli.services import with_progress
from billing.cli.stripe_events import app as events
from billing.cli.stripe_setup import SetupReport, document, print_report
from billing.reporting.setup import CustomerLine, CustomerState, differing
from billing.reporting.unit_price import unit_price

app = typer.Typer(no_args_is_help=True, help="Stripe: meters, customers, and what it has told.")
app.add_typer(events, name="events")


@app.callback()
def stripe() -> None:
    """Stripe: meters, customers, and what it has told."""


@app.command()
def setup(
    context: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")
    ] = False,
    customers: Annotated[
        list[str] | None,
        typer.Option("--customer", help="Only this customer; may be repeated.", metavar="CUSTOMER"),
    ] = None,
    create: Annotated[
        bool,
        typer.Option(
            "--create-customers/--no-create-customers",
            help="Whether to make at Stripe who is not there.",
        ),
    ] = True,
    json: Json = False,
) -> None:
    """Make a meter per SKU and a Stripe customer per customer; what is there is left as it is.

    May be run again at any time. Exits with 1 where a meter at Stripe counts otherwise than is
    needed (then nothing is made at all) or a customer could not be linked.
    """
    container = container_of(context)
    provider_setup = container.reporting.setup()
    chosen = [container.customers.get(one) for one in dict.fromkeys(customers or ())]
    metered = container.reporting.metered()
    meters = provider_setup.meters([one.meter for one in metered.values()], dry_run=dry_run)
    lines: list[CustomerLine] = []
    if not differing(meters):
        everybody = chosen or container.customers.list()
        steps = provider_setup.customers(everybody, create=create, dry_run=dry_run)
        lines = list(with_progress(steps, name="linking customers", total=len(everybody)))
    report = SetupReport(
        dry_run=dry_run,
        create=create,
        live=container.reporting.bills_live,
        environment=container.settings.environment,
        base=container.settings.stripe_api_base,
        provider=container.settings.provider_name,
        has_webhook_secret=container.settings.stripe_webhook_secret is not None,
        credit_value=container.settings.credit_value,
        currency=container.settings.currency,
        meters=meters,
        prices={
            sku: unit_price(
                container.settings.credit_value, container.settings.currency, one.decimals
            )
            for sku, one in metered.items()
        },
        customers=lines,
    )
    show(json, document(report), lambda: print_report(report))
    if differing(meters) or any(one.state is CustomerState.FAILED for one in lines):
        raise typer.Exit(1)
