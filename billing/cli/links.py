"""``billing customers link``: who a customer is at Stripe."""

from __future__ import annotations

from typing import Annotated

import typer

from billing.cli.context import CustomerId, Json, container_of
from billing.cli.output import Cell, instant, print_json, say
from billing.container import Container
from billing.core.customer import Customer
from billing.providers.stripe.customer_link import check_for


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
    before = container.customers.get(customer)
    is_checked = stripe_id is not None and check and container.settings.stripe_api_key is not None
    if stripe_id is not None and is_checked:
        check_for(customer, container.reporting.stripe_customer(stripe_id))
    after = container.customers.link_stripe(customer, stripe_id)
    if json:
        print_json({**link_document(after), "former": before.stripe_customer_id})
    elif unlink:
        say(f"customer {customer} is nobody at Stripe; what is used adds up in the log")
        say("and is parked (unmapped_customer); billing stripe setup would link them again")
    else:
        _say_linked(container, before, after, is_checked=is_checked)


def _say_linked(
    container: Container, before: Customer, after: Customer, *, is_checked: bool
) -> None:
    said = f"customer {after.id} is {after.stripe_customer_id} at Stripe"
    if not is_checked:
        said += " (not checked: no STRIPE_API_KEY)" if not _has_key(container) else " (not checked)"
    say(said)
    former = before.stripe_customer_id
    if former not in (None, after.stripe_customer_id):
        say(f"what was accepted for {former} stays with {former}")
    say("what was parked for want of a customer goes out with the next billing report run")


def _has_key(container: Container) -> bool:
    return container.settings.stripe_api_key is not None


def link_document(customer: Customer) -> dict[str, object]:
    """A link for machines."""
    return {
        "customer": customer.id,
        "stripe_customer_id": customer.stripe_customer_id,
        "stripe_deleted_at": customer.stripe_deleted_at,
    }


def link_cell(customer: Customer) -> Cell:
    """Who a customer is at Stripe, for people."""
    if customer.stripe_deleted_at is not None:
        gone = f"deleted {instant(customer.stripe_deleted_at)}"
        return f"{customer.stripe_customer_id}, {gone}" if customer.stripe_customer_id else gone
    return customer.stripe_customer_id
