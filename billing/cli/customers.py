"""``billing customers``: the customers who are billed, their budgets, their ids at Stripe."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from billing.cli.context import CustomerId, Json, container_of, sync
from billing.cli.credits import balance_document, balance_facts, balance_of
from billing.cli.output import (
    Cell,
    Column,
    credits_column,
    document_of,
    instant,
    number,
    print_facts,
    print_json,
    print_table,
    say,
    show,
    show_table,
)
from billing.container import Container
from billing.core.credits import format_credits, parse_credits
from billing.core.customer import Customer
from billing.providers.stripe.customer_link import check_for

app = typer.Typer(no_args_is_help=True, help="Who is billed: add, list, suspend, budget, link.")


def customer_document(customer: Customer) -> dict[str, Any]:
    """A customer for machines."""
    return document_of(
        customer,
        "customer=id name status time_zone stripe_customer_id stripe_deleted_at created_at",
    )


@app.command()
def add(
    context: typer.Context,
    customer: CustomerId,
    name: Annotated[str, typer.Argument(help="The customer's name, for people.")],
    time_zone: Annotated[
        str, typer.Option(help="IANA name of where the customer's months begin.")
    ] = "UTC",
    stripe_customer_id: Annotated[
        str | None, typer.Option(help="Who this is at Stripe, such as cus_123.")
    ] = None,
    json: Json = False,
) -> None:
    """Take a customer in. The same again changes nothing."""
    added = container_of(context).customers.add(customer, name, time_zone, stripe_customer_id)
    said = f"customer {added.id} ({added.name}) is there; months begin in {added.time_zone}"
    show(json, customer_document(added), lambda: say(said))


@app.command("list")
def list_(context: typer.Context, json: Json = False) -> None:
    """List every customer."""
    show_table(
        json,
        "Customers",
        [
            Column("customer", "id"),
            Column("name"),
            Column("status"),
            Column("time zone", "time_zone"),
            Column("Stripe", _link_cell),
            Column("since", "created_at"),
        ],
        container_of(context).customers.list(),
        document=customer_document,
        empty="none; add one with: billing customers add ID NAME",
    )


@app.command("show")
def show_(context: typer.Context, customer: CustomerId, json: Json = False) -> None:
    """Show a customer with balance and budgets."""
    container = container_of(context)
    found = container.customers.get(customer)
    budgets = container.customers.budgets(customer)
    balance = balance_of(container, customer)
    if json:
        more = {"budgets": budgets, "balance": balance_document(balance)}
        print_json(customer_document(found) | more)
        return
    print_facts(
        f"Customer {found.id}",
        [
            ("name", found.name),
            ("status", found.status),
            ("time zone", found.time_zone),
            ("Stripe customer", _link_cell(found)),
            ("since (UTC)", found.created_at),
            *balance_facts(balance),
        ],
    )
    spent = balance.spent
    print_table(
        "Monthly budgets (credits)",
        [
            Column("SKU", lambda one: _sku_name(one.sku)),
            credits_column("limit", "limit_microcredits"),
            number(
                "spent or held",
                lambda one: format_credits(spent[one.sku]) if one.sku in spent else None,
            ),
        ],
        budgets,
        empty="none",
    )


@app.command()
def suspend(context: typer.Context, customer: CustomerId, json: Json = False) -> None:
    """Deny the customer's new tasks; what is held already may finish and is billed."""
    _set_status(context, customer, "suspended", json=json)


@app.command()
def resume(context: typer.Context, customer: CustomerId, json: Json = False) -> None:
    """Admit the customer's tasks again."""
    _set_status(context, customer, "active", json=json)


def _set_status(context: typer.Context, customer: str, status: str, *, json: bool) -> None:
    container = container_of(context)
    changed = container.customers.set_status(customer, status)
    sync(container, customer)
    said = f"customer {changed.id} is {changed.status}"
    show(json, customer_document(changed), lambda: say(said))


@app.command()
def budget(
    context: typer.Context,
    customer: CustomerId,
    sku: Annotated[str, typer.Argument(help="A SKU, or '*' for all of them together.")],
    limit: Annotated[
        str, typer.Argument(help="Credits per month, such as 500 or 0.25; 'none' for no ceiling.")
    ],
    json: Json = False,
) -> None:
    """Set a ceiling per calendar month of the customer's time zone."""
    container = container_of(context)
    microcredits = None if limit == "none" else parse_credits(limit, field="limit")
    budget = container.customers.set_budget(customer, sku, microcredits)
    sync(container, customer)
    if json:
        print_json(budget)
    elif budget is None:
        say(f"customer {customer} has no budget for {_sku_name(sku)}")
    else:
        limited = format_credits(budget.limit_microcredits)
        say(f"customer {customer} may spend {limited} credits a month on {_sku_name(sku)}")


@app.command()
def link(
    context: typer.Context,
    customer: CustomerId,
    stripe_id: Annotated[
        str | None, typer.Argument(help="Who this is at Stripe: cus_...", metavar="[STRIPE_ID]")
    ] = None,
    unlink: Annotated[
        bool, typer.Option("--unlink", help="This customer is nobody at Stripe any more.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Whether to ask Stripe if there is such one.")
    ] = True,
    json: Json = False,
) -> None:
    """Say who a customer is at Stripe. What Stripe has accepted before stays where it is."""
    if unlink == (stripe_id is not None):
        raise typer.BadParameter("give the id of a customer at Stripe, or --unlink; not both")
    container = container_of(context)
    former = container.customers.get(customer).stripe_customer_id
    has_key = container.settings.stripe_api_key is not None
    is_checked = stripe_id is not None and check and has_key
    if stripe_id is not None and is_checked:
        _check_at_stripe(container, customer, stripe_id)
    after = container.customers.link_stripe(customer, stripe_id)
    if json:
        keys = "customer=id stripe_customer_id stripe_deleted_at"
        print_json(document_of(after, keys, former=former))
    elif unlink:
        say(f"customer {customer} is nobody at Stripe; what is used adds up in the log")
        say("and is parked (unmapped_customer); billing stripe setup would link them again")
    else:
        unchecked = " (not checked)" if has_key else " (not checked: no STRIPE_API_KEY)"
        _say_linked(after, former, "" if is_checked else unchecked)


def _check_at_stripe(container: Container, customer: str, stripe_id: str) -> None:
    check_for(customer, container.reporting.stripe_customer(stripe_id))


def _say_linked(customer: Customer, former: str | None, unchecked: str) -> None:
    say(f"customer {customer.id} is {customer.stripe_customer_id} at Stripe{unchecked}")
    if former not in (None, customer.stripe_customer_id):
        say(f"what was accepted for {former} stays with {former}")
    say("what was parked for want of a customer goes out with the next billing report run")


def _link_cell(customer: Customer) -> Cell:
    if customer.stripe_deleted_at is not None:
        gone = f"deleted {instant(customer.stripe_deleted_at)}"
        return f"{customer.stripe_customer_id}, {gone}" if customer.stripe_customer_id else gone
    return customer.stripe_customer_id


def _sku_name(sku: str) -> str:
    return "all SKUs together" if sku == "*" else sku
