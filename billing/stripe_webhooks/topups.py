"""A paid checkout becomes a grant, once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from billing.catalog.grants import grant_on
from billing.core.credits import format_credits
from billing.core.errors import AlreadyExists, InvalidValue
from billing.postgres.locks import AdvisoryLockClass, lock_name
from billing.postgres.schema import customers, grants
from billing.stripe_webhooks.checkout import Checkout, NotYet, credits_bought
from billing.stripe_webhooks.event_store import EventOutcome, WebhookAlarm
from billing.stripe_webhooks.stripe_event import EventResult

NOT_GIVEN: Final = WebhookAlarm(
    "paid_credits_not_given",
    "put right what the detail says, then: billing stripe events retry ID",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopupTerms:
    """The worth of credits: ``credit_value`` is a decimal string in ``currency``."""

    currency: str
    credit_value: str


def note_checkout(connection: sa.Connection, checkout: Checkout, terms: TopupTerms) -> EventOutcome:
    """Give the credits of a checkout that is paid.

    Where they cannot be given yet (whose, or how many, cannot be told) the event is kept.
    """
    if not checkout.paid_top_up:
        return EventOutcome(
            result=EventResult.IGNORED,
            detail=f"{checkout.id}: mode {checkout.mode}, payment {checkout.payment_status}; "
            "credits are given for a paid checkout in payment mode",
        )
    try:
        given = _given_before(connection, checkout.reference)
        if given is not None:
            detail = f"{checkout.id}: its credits were given to {given} before"
            return EventOutcome(result=EventResult.IGNORED, detail=detail)
        amount = credits_bought(checkout, currency=terms.currency, credit_value=terms.credit_value)
        if not amount:
            return EventOutcome(
                result=EventResult.IGNORED, detail=f"{checkout.id} bought no credits"
            )
        customer = _customer(connection, checkout)
        _give(connection, customer, checkout, amount)
    except NotYet as error:
        detail = f"{checkout.id}: {error.reason}"
        return EventOutcome(result=EventResult.KEPT, detail=detail, alarm=NOT_GIVEN)
    return EventOutcome(
        result=EventResult.DONE,
        detail=f"{checkout.id}: {format_credits(amount)} credits to {customer}",
        customers=frozenset({customer}),
    )


def _customer(connection: sa.Connection, checkout: Checkout) -> str:
    """Our customer: linked to the one who paid, else named by the shop."""
    if checkout.customer_ref:
        linked = sa.select(customers.c.id).where(
            customers.c.stripe_customer_id == checkout.customer_ref
        )
        found = connection.scalar(linked)
        if found is not None:
            return str(found)
    named = connection.scalar(sa.select(customers.c.id).where(customers.c.id == checkout.named))
    if named is None:
        raise NotYet(
            f"neither {checkout.customer_ref or 'nobody'} (customer) nor "
            f"{checkout.named or 'nothing'} (client_reference_id) is a customer of ours; link one"
        )
    return str(named)


def _given_before(connection: sa.Connection, reference: str) -> str | None:
    """The customer who got this checkout's credits, if any; locks the reference until the end.

    A grant is once per customer and reference. Two events tell of one checkout, and who is linked
    to the one who paid may change between them.
    """
    lock_name(connection, AdvisoryLockClass.TOPUP, reference)
    query = sa.select(grants.c.customer_id).where(grants.c.reference == reference)
    return connection.scalar(query.limit(1))


def _give(connection: sa.Connection, customer: str, checkout: Checkout, amount: int) -> None:
    try:
        grant_on(connection, customer, amount, checkout.reference, f"checkout {checkout.id}")
    except (InvalidValue, AlreadyExists) as error:
        raise NotYet(str(error)) from error
