"""The effect of a provider's invoice: it is written down, and its periods are closed.

The same for a webhook and for a poll: what is given here is the invoice as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from billing.postgres.schema import customers, provider_invoices
from billing.providers.port import ProviderInvoice
from billing.reporting.closed_periods import record_closed_periods
from billing.reporting.destination import CustomerIds
from billing.stripe_webhooks.event_store import EventOutcome, WebhookAlarm
from billing.stripe_webhooks.stripe_event import EventResult

PROGRESS: Final[Mapping[str, int]] = {
    "draft": 0,
    "open": 1,
    "uncollectible": 2,
    "paid": 3,
    "void": 3,
    "deleted": 0,
}
"""How far an invoice is; it never goes back, so an older read is known by it. Only a draft can be
deleted, and whichever of the two was read first: drafts are looked at again (``drafts``)."""

VOID: Final = WebhookAlarm(
    "void_invoice_billed_usage",
    "it is not billed again by itself: a person decides, see docs/stripe.md",
)


def is_older(status: str, known: str) -> bool:
    """Whether ``status`` was read before ``known`` was. Pure."""
    return PROGRESS[status] < PROGRESS[known]


def note_invoice(
    connection: sa.Connection,
    provider: str,
    ids: CustomerIds,
    invoice: ProviderInvoice,
    now: datetime,
    *,
    failed_at: datetime | None = None,
) -> EventOutcome:
    """Write an invoice down as it stands, and close its periods if it is final.

    Args:
        connection: The transaction of the event or the poll.
        provider: Whose invoice.
        ids: By which id it knows customers.
        invoice: As it stands.
        now: The time.
        failed_at: When a payment of it failed, where an event says so.
    """
    known = _known(connection, provider, invoice.provider_id)
    customer = _customer(connection, provider, ids, invoice, known)
    if customer is None:
        return EventOutcome(
            result=EventResult.IGNORED,
            detail=f"invoice {invoice.provider_id}: {invoice.customer_ref} is no customer of ours",
        )
    if failed_at is None and invoice.payment_failed:
        failed_at = now
    if known is None:
        _insert(connection, provider, customer, invoice, now)
        known = _known(connection, provider, invoice.provider_id)
    assert known is not None  # noqa: S101 - it is there since the statement before
    _update(connection, known, customer, invoice, now, failed_at)
    closed = 0
    if invoice.finalised_at is not None:
        closed = record_closed_periods(connection, provider, customer, invoice, now)
    became_void = invoice.status == "void" and known["status"] != "void"
    return EventOutcome(
        result=EventResult.DONE,
        detail=f"invoice {invoice.provider_id} of {customer} is {invoice.status}; "
        f"periods sealed: {closed}",
        alarm=VOID if became_void and invoice.lines else None,
    )


def drafts(connection: sa.Connection, provider: str) -> list[str]:
    """The invoices that were drafts when they were last told of."""
    query = sa.select(provider_invoices.c.invoice_ref).where(
        provider_invoices.c.provider == provider, provider_invoices.c.status == "draft"
    )
    return list(connection.scalars(query.order_by(provider_invoices.c.invoice_ref)))


def _known(connection: sa.Connection, provider: str, invoice_ref: str) -> sa.RowMapping | None:
    query = sa.select(provider_invoices).where(*_is(provider, invoice_ref)).with_for_update()
    return connection.execute(query).mappings().one_or_none()


def _customer(
    connection: sa.Connection,
    provider: str,
    ids: CustomerIds,
    invoice: ProviderInvoice,
    known: sa.RowMapping | None,
) -> str | None:
    """Our customer: linked now, else linked at an earlier invoice.

    A customer that was deleted at Stripe is linked to nobody, and its last invoice comes after.
    """
    if known is not None and known["customer_id"] is not None:
        return str(known["customer_id"])
    linked = sa.select(customers.c.id).where(customers.c[ids.value] == invoice.customer_ref)
    formerly = (
        sa.select(provider_invoices.c.customer_id)
        .where(
            provider_invoices.c.provider == provider,
            provider_invoices.c.customer_ref == invoice.customer_ref,
            provider_invoices.c.customer_id.is_not(None),
        )
        .order_by(provider_invoices.c.period_end.desc())
        .limit(1)
    )
    return connection.scalar(linked) or connection.scalar(formerly)


def _insert(
    connection: sa.Connection,
    provider: str,
    customer: str,
    invoice: ProviderInvoice,
    now: datetime,
) -> None:
    values = {
        "provider": provider,
        "invoice_ref": invoice.provider_id,
        # The first status there is: the update that follows is then no step back.
        **_values(customer, invoice, now),
        "status": "draft",
        "finalized_at": None,
    }
    connection.execute(insert(provider_invoices).values(values).on_conflict_do_nothing())


def _update(
    connection: sa.Connection,
    known: sa.RowMapping,
    customer: str,
    invoice: ProviderInvoice,
    now: datetime,
    failed_at: datetime | None,
) -> None:
    columns = provider_invoices.c
    values: dict[str, Any] = {"payment_failed_at": known["payment_failed_at"] or failed_at}
    if not is_older(invoice.status, known["status"]):
        values |= _values(customer, invoice, now)
        values["finalized_at"] = known["finalized_at"] or invoice.finalised_at
    connection.execute(
        sa.update(provider_invoices)
        .where(columns.provider == known["provider"], columns.invoice_ref == known["invoice_ref"])
        .values(**values)
    )


def _values(customer: str, invoice: ProviderInvoice, now: datetime) -> dict[str, Any]:
    return {
        "customer_ref": invoice.customer_ref,
        "customer_id": customer,
        "status": invoice.status,
        "currency": invoice.currency,
        "total_minor": invoice.total_minor,
        "period_start": invoice.period_start,
        "period_end": invoice.period_end,
        "updated_at": now,
    }


def _is(provider: str, invoice_ref: str) -> tuple[sa.ColumnElement[bool], ...]:
    return provider_invoices.c.provider == provider, provider_invoices.c.invoice_ref == invoice_ref
