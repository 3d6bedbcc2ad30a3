"""``billing customers``: who is billed."""

from __future__ import annotations

from typing import Annotated

import typer

from billing.cli.balance import balance_document, balance_facts, balance_of
from billing.cli.context import CustomerId, Json, container_of, sync
from billing.cli.links import link, link_cell
from billing.cli.output import Column, print_facts, print_json, print_table, say
from billing.core.credits import format_credits, parse_credits
from billing.core.customer import Budget, Customer

app = typer.Typer(no_args_is_help=True, help="Who is billed: add, list, suspend, budget, link.")


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
    if json:
        print_json(customer_document(added))
    else:
        say(f"customer {added.id} ({added.name}) is there; months begin in {added.time_zone}")


@app.command("list")
def list_(context: typer.Context, json: Json = False) -> None:
    """List every customer."""
    found = container_of(context).customers.list()
    if json:
        print_json([customer_document(each) for each in found])
        return
    print_table(
        "Customers",
        [Column(name) for name in ("customer", "name", "status", "time zone", "Stripe", "since")],
        [(c.id, c.name, c.status.value, c.time_zone, link_cell(c), c.created_at) for c in found],
        empty="none; add one with: billing customers add ID NAME",
    )


@app.command()
def show(context: typer.Context, customer: CustomerId, json: Json = False) -> None:
    """Show a customer with balance and budgets."""
    container = container_of(context)
    found = container.customers.get(customer)
    budgets = container.customers.budgets(customer)
    balance = balance_of(container, customer)
    if json:
        document = customer_document(found)
        document["budgets"] = [budget_document(each) for each in budgets]
        document["balance"] = balance_document(balance)
        print_json(document)
        return
    print_facts(
        f"Customer {found.id}",
        [
            ("name", found.name),
            ("status", found.status.value),
            ("time zone", found.time_zone),
            ("Stripe customer", link_cell(found)),
            ("since (UTC)", found.created_at),
            *balance_facts(balance),
        ],
    )
    spent = balance.account.spent if balance.account else {}
    print_table(
        "Monthly budgets (credits)",
        [Column("SKU"), Column("limit", numeric=True), Column("spent or held", numeric=True)],
        [
            (
                _sku_name(each.sku),
                format_credits(each.limit_microcredits),
                format_credits(spent[each.sku]) if each.sku in spent else None,
            )
            for each in budgets
        ],
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
    if json:
        print_json(customer_document(changed))
    else:
        say(f"customer {changed.id} is {changed.status.value}")


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
        print_json(budget_document(budget) if budget else None)
    elif budget is None:
        say(f"customer {customer} has no budget for {_sku_name(sku)}")
    else:
        limited = format_credits(budget.limit_microcredits)
        say(f"customer {customer} may spend {limited} credits a month on {_sku_name(sku)}")


app.command()(link)


def customer_document(customer: Customer) -> dict[str, object]:
    """A customer for machines."""
    return {
        "customer": customer.id,
        "name": customer.name,
        "status": customer.status.value,
        "time_zone": customer.time_zone,
        "stripe_customer_id": customer.stripe_customer_id,
        "stripe_deleted_at": customer.stripe_deleted_at,
        "created_at": customer.created_at,
    }


def budget_document(budget: Budget) -> dict[str, object]:
    """A budget for machines."""
    return {
        "customer": budget.customer,
        "sku": budget.sku,
        "limit_microcredits": budget.limit_microcredits,
    }


def _sku_name(sku: str) -> str:
    return "all SKUs together" if sku == "*" else sku
