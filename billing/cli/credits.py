"""``billing credits``: grants, and balances on both sides: PostgreSQL, the truth, and Redis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Final

import typer

from billing.cli.context import CustomerId, Json, container_of, sync
from billing.cli.output import (
    Cell,
    Column,
    credits_column,
    document_of,
    moment,
    print_facts,
    print_json,
    print_table,
    say,
    show,
    show_table,
)
from billing.container import Container
from billing.core.clock import EPOCH
from billing.core.credits import format_credits, parse_credits
from billing.core.errors import QuotaUnavailable
from billing.core.periods import Period, hour_ceiling

app = typer.Typer(no_args_is_help=True, help="What customers were given, and what is left.")

_ACCEPTED_AHEAD: Final = timedelta(days=1)
"""Events further in the future than minutes are refused, so this covers every one there is."""
_GRANTS: Final = (
    Column("reference"),
    credits_column("credits", "amount_microcredits"),
    moment("given (UTC)", "created_at"),
    Column("note"),
)
_BALANCES: Final = (
    Column("customer"),
    credits_column("granted", "granted_microcredits"),
    credits_column("in the log", "logged_microcredits"),
    credits_column("settled", "settled_microcredits"),
    credits_column("held", "held_microcredits"),
    credits_column("available", "available_microcredits"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """A customer's balance.

    ``granted_microcredits`` and ``logged_microcredits`` are PostgreSQL's sums of grants and of the
    log. The others are Redis's: None where it has no account or, with ``redis_error``, did not say.
    """

    customer: str
    granted_microcredits: int
    logged_microcredits: int
    settled_microcredits: int | None
    held_microcredits: int | None
    available_microcredits: int | None
    epoch: int | None
    version: int | None
    redis_error: str | None
    spent: Mapping[str, int]
    """Of the month's budgets, by SKU."""


def balance_of(container: Container, customer: str) -> Balance:
    """Both sides of a customer's balance.

    Raises:
        NotFound: There is no such customer.
    """
    account, redis_error = None, None
    try:
        account = container.quota.account(customer)
    except QuotaUnavailable as error:
        redis_error = str(error)
    ever = Period("all", EPOCH, hour_ceiling(container.clock.now() + _ACCEPTED_AHEAD))
    return Balance(
        customer=customer,
        granted_microcredits=container.grants.granted(customer),
        logged_microcredits=container.usage.total(customer, ever).amount_microcredits,
        settled_microcredits=account.settled_microcredits if account else None,
        held_microcredits=account.held_microcredits if account else None,
        available_microcredits=account.available_microcredits if account else None,
        epoch=account.epoch if account else None,
        version=account.version if account else None,
        redis_error=redis_error,
        spent=account.spent if account else {},
    )


def balance_document(balance: Balance) -> dict[str, Any]:
    """A balance for machines."""
    document = document_of(balance)
    del document["spent"]
    return document


def balance_facts(balance: Balance) -> list[tuple[str, Cell]]:
    """A balance for people, in credits."""
    facts = [(column.name, column.of(balance)) for column in _BALANCES[1:]]
    if balance.epoch is not None:
        return facts
    left = format_credits(balance.granted_microcredits - balance.logged_microcredits)
    why = balance.redis_error or "no account there yet; the next task loads it from PostgreSQL"
    return [*facts[:2], ("granted less logged", left), ("Redis", why)]


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
    existed = container.grants.find(customer, reference) is not None
    given = container.grants.grant(customer, microcredits, reference, note)
    sync(container, customer)
    amount = format_credits(given.amount_microcredits)
    before = " before; nothing changed" if existed else ""
    show(
        json,
        document_of(given, existed=existed),
        lambda: say(f"customer {customer} got {amount} credits under {reference}{before}"),
    )


@app.command()
def rebuild(context: typer.Context, customer: CustomerId, json: Json = False) -> None:
    """Load a balance into Redis anew from PostgreSQL, which is right where the two disagree.

    Open holds stay held. Do it when nothing of this customer is between outbox and log (see
    doctor): what is still on its way can be spent once more until it is logged.
    """
    container = container_of(context)
    container.customers.get(customer)
    outcome = container.account_loader.rebuild(customer, force=True)
    found = balance_of(container, customer)
    if json:
        print_json({"outcome": outcome} | balance_document(found))
        return
    say(f"customer {customer}: {outcome}")
    print_facts(f"Balance of {customer} (credits)", balance_facts(found))


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
        show_table(
            json,
            "Balances (credits)",
            _BALANCES,
            everyone,
            document=balance_document,
            empty="no customers",
        )
        return
    grants = container.grants.grants(customer)
    found = balance_of(container, customer)
    if json:
        print_json(balance_document(found) | {"grants": grants})
        return
    print_facts(f"Balance of {customer} (credits)", balance_facts(found))
    print_table("Grants", _GRANTS, grants, empty="none; give some with: billing credits grant")
