"""From an event to its effect: first Stripe is asked, then one transaction changes the books.

Asking may take seconds and may fail, so it is done before the transaction; what it brings is
handed to the effect, which only talks to PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

import sqlalchemy as sa

from billing.core.errors import NotFound
from billing.providers.port import VERDICTS, Provider, ProviderUnavailable, ProviderVerdict
from billing.reporting.confirmations import ConfirmationStore
from billing.reporting.destination import CustomerIds
from billing.stripe_webhooks.checkout import read_checkout
from billing.stripe_webhooks.deletions import note_deletion
from billing.stripe_webhooks.event_store import EventOutcome
from billing.stripe_webhooks.invoices import note_invoice
from billing.stripe_webhooks.meter_errors import read_meter_errors
from billing.stripe_webhooks.rejected_usage import note_rejected_usage
from billing.stripe_webhooks.stripe_event import (
    PAYMENT_FAILED,
    EventKind,
    EventResult,
    StripeEvent,
    Unreadable,
)
from billing.stripe_webhooks.topups import TopupTerms, note_checkout

if TYPE_CHECKING:  # stripe is an extra
    from billing.stripe_webhooks.stripe_reads import StripeReads

Effect = Callable[[sa.Connection, datetime], EventOutcome]
"""What an event does, in a given transaction and at a given time."""


class StripeAccess(Protocol):
    """Access to Stripe: ``provider`` for invoices, ``reads`` for the rest."""

    @property
    def provider(self) -> Provider:
        """Reads invoices."""

    @property
    def reads(self) -> StripeReads:
        """Reads what else events are about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventHandlers:
    """The effects of events.

    ``stripe`` gives access to Stripe and is only called where Stripe has to be asked; ``terms`` are
    what credits are worth.
    """

    stripe: Callable[[], StripeAccess]
    confirmations: ConfirmationStore
    terms: TopupTerms

    def effect_of(self, event: StripeEvent) -> Effect:
        """The effect of an event.

        Raises:
            ProviderUnavailable: Stripe has no answer; the same event has to be tried again.
            ConfigurationError: Stripe cannot be asked as the settings are.
        """
        match event.kind:
            case None:
                return just(EventResult.IGNORED, f"nothing is done about {event.type}")
            case EventKind.CUSTOMER_DELETED:
                return _deletion(event)
            case EventKind.INVOICE:
                return _asked(lambda: _invoice(event, self.stripe().provider))
            case EventKind.CHECKOUT:
                return _asked(lambda: _checkout(event, self.stripe().reads, self.terms))
            case EventKind.METER_ERRORS:
                return _asked(lambda: _meter_errors(event, self.stripe(), self.confirmations))


def _asked(prepare: Callable[[], Effect]) -> Effect:
    """Ask Stripe; an answer that will never be another one keeps the event."""
    try:
        return prepare()
    except NotFound as error:
        return just(EventResult.KEPT, str(error))
    except Unreadable as error:
        return just(EventResult.KEPT, error.reason)
    except ProviderUnavailable as error:
        if error.cause is None or VERDICTS[error.cause] is not ProviderVerdict.REFUSED:
            raise
        return just(EventResult.KEPT, str(error))


def just(result: EventResult, detail: str) -> Effect:
    """An effect that changes nothing."""
    return lambda _connection, _now: EventOutcome(result=result, detail=detail)


def _deletion(event: StripeEvent) -> Effect:
    # Nothing is asked: a deletion is for good, and no id is used again.
    return lambda connection, _now: note_deletion(
        connection, "stripe", event.thing, event.happened_at
    )


def _invoice(event: StripeEvent, provider: Provider) -> Effect:
    try:
        invoice = provider.provider_invoice(event.thing)
    except NotFound:
        # Most accounts have invoices for other things too.
        return just(EventResult.IGNORED, f"invoice {event.thing} bills no metered usage of ours")
    failed_at = event.happened_at if event.type == PAYMENT_FAILED else None
    return lambda connection, now: note_invoice(
        connection, provider.name, CustomerIds.STRIPE, invoice, now, failed_at=failed_at
    )


def _checkout(event: StripeEvent, reads: StripeReads, terms: TopupTerms) -> Effect:
    checkout = read_checkout(reads.checkout(event.thing))
    return lambda connection, _now: note_checkout(connection, checkout, terms)


def _meter_errors(
    event: StripeEvent, stripe: StripeAccess, confirmations: ConfirmationStore
) -> Effect:
    errors = read_meter_errors(stripe.reads.thin_event(event.id))
    meter = stripe.reads.meter_name(event.thing) if event.thing else None
    return lambda connection, now: note_rejected_usage(
        connection, confirmations, stripe.provider.name, meter, errors, now
    )
