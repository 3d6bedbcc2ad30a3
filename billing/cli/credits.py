"""``billing credits``: what customers were given and what is left."""

from __future__ import annotations

from typing import Annotated

import typer

from billing.catalog.grants import Grant
from billing.cli.balance import Balance, balance_document, balance_facts, balance_of
from billing.cli.context import CustomerId, Json, container_of, sync
from billing.cli.output import Column, print_facts, print_json, print_table, say
from billing.core.credits import format_credits, parse_credits

app = typer.Typer(no_args_is_help=True, help="What customers were given, and what is left.")


@app.command()
def grant(
    context: typer.Context,
    customer: CustomerId,
    amount: Annotated[str, typer.Argument(help="Credits, such as 500 or 0.25.", metavar="CREDITS")],
    reference: Annotated[
        str,
        typer.Option(
            help="Your name for this grant (an order, a payment). One reference, one grant."
        ),
    ],
    note: Annotated[str, typer.Option(help="For people.")] = "",
    json: Json = False,
) -> None:
    """Give credits. Repeating it under the same reference gives nothing more."""
    container = container_of(context)
    microcredits = parse_credits(amount, field="amount")
    before = container.grants.find(customer, reference)
    given = container.grants.grant(customer, microcredits, reference, note)
    sync(container, customer)
    if json:
        print_json({**_grant_document(given), "existed": before is not None})
        return
    amount = format_credits(given.amount_microcredits)
    if before is not None:
        say(f"customer {customer} got {amount} credits under {reference} before; nothing changed")
    else:
        say(f"customer {customer} got {amount} credits under {reference}")


@app.command()
def rebuild(context: typer.Context, customer: CustomerId, json: Json = False) -> None:
    """Load a balance into Redis anew from PostgreSQL, which is right where the two disagree.

    Open holds stay held. Do it when nothing of this customer is between outbox and log (see
    doctor): what is still on its way can be spent once more until it is logged.
    """
    container = container_of(context)
    container.customers.get(customer)
    outcome = container.account_loader.rebuild(customer, force=True)
    if json:
        print_json({"outcome": outcome.value, **balance_document(balance_of(container, customer))})
        return
    say(f"customer {customer}: {outcome.value}")
    print_facts(f"Balance of {customer} (credits)", balance_facts(balance_of(container, customer)))


@app.command()
def balance(
    context: typer.Context,
    customer: Annotated[
        str | None, typer.Argument(help="A customer's id; all without.", metavar="[CUSTOMER]")
    ] = None,
    json: Json = False,
) -> None:
    """Show what is left: granted, settled, held, available; for one customer the grants too."""
    container = container_of(context)
    if customer is None:
        everyone = [balance_of(container, each.id) for each in container.customers.list()]
        _print_everyone(everyone, json=json)
        return
    grants = container.grants.grants(customer)
    found = balance_of(container, customer)
    if json:
        document = balance_document(found)
        document["grants"] = [_grant_document(each) for each in grants]
        print_json(document)
        return
    print_facts(f"Balance of {customer} (credits)", balance_facts(found))
    print_table(
        "Grants",
        [
            Column("reference"),
            Column("credits", numeric=True),
            Column("given (UTC)", whole=True),
            Column("note"),
        ],
        [
            (each.reference, format_credits(each.amount_microcredits), each.created_at, each.note)
            for each in grants
        ],
        empty="none; give some with: billing credits grant",
    )


def _print_everyone(everyone: list[Balance], *, json: bool) -> None:
    if json:
        print_json([balance_document(each) for each in everyone])
        return
    figures = ("granted", "in the log", "settled", "held", "available")
    print_table(
        "Balances (credits)",
        [Column("customer"), *(Column(name, numeric=True) for name in figures)],
        [_row(each) for each in everyone],
        empty="no customers",
    )


def _row(balance: Balance) -> tuple[str | None, ...]:
    account = balance.account
    known = (
        (account.settled_microcredits, account.held_microcredits, account.available_microcredits)
        if account
        else (None, None, None)
    )
    figures = (balance.granted_microcredits, balance.logged_microcredits, *known)
    return (
        balance.customer,
        *(None if each is None else format_credits(each) for each in figures),
    )


def _grant_document(grant: Grant) -> dict[str, object]:
    return {
        "id": grant.id,
        "customer": grant.customer,
        "amount_microcredits": grant.amount_microcredits,
        "reference": grant.reference,
        "note": grant.note,
        "created_at": grant.created_at,
    }
