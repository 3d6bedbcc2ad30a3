"""From an event to its effect: first Stripe is asked, then one transaction changes the books.

Asking may take seconds and may fail, so it is done before the transaction; what it brings is
handed to the effect, which only talks to PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, Protocol

import sqlalchemy as sa

from billing.core.errors import NotFound
from billing.providers.port import VERDICTS, Provider, ProviderUnavailable, ProviderVerdict
from billing.reporting.confirmations import ConfirmationStore
from billing.reporting.destination import CustomerIds
from billing.stripe_webhooks.checkout import read_checkout
from billing.stripe_webhooks.deletions import note_deletion
from billing.stripe_webhooks.event_store import EventOutcome, WebhookAlarm
from billing.stripe_webhooks.invoices import note_invoice
from billing.stripe_webhooks.meter_errors import MeterErrors, read_meter_errors
from billing.stripe_webhooks.stripe_event import (
    PAYMENT_FAILED,
    NoticeKind,
    NoticeResult,
    ProviderNotice,
    Unreadable,
)
from billing.stripe_webhooks.topups import TopupTerms, note_checkout

if TYPE_CHECKING:  # stripe is an extra
    from billing.stripe_webhooks.stripe_reads import StripeReads

REJECTED: Final = WebhookAlarm(
    "the provider rejected usage that it had taken",
    "it is not billed until it is taken again: billing report list --state parked",
)

Effect = Callable[[sa.Connection, datetime], EventOutcome]
"""What an event does, in a given transaction and at a given time."""


class StripeAccess(Protocol):
    """Access to Stripe: ``provider`` for invoices, ``reads`` for the rest."""

    provider: Provider
    reads: StripeReads


@dataclass(frozen=True, slots=True, kw_only=True)
class EventHandlers:
    """What events do.

    ``stripe`` gives access to Stripe and is only called where Stripe has to be asked; ``terms`` are
    what credits are worth.
    """

    stripe: Callable[[], StripeAccess]
    confirmations: ConfirmationStore
    terms: TopupTerms

    def effect_of(self, notice: ProviderNotice) -> Effect:
        """What an event does.

        Raises:
            ProviderUnavailable: Stripe has no answer; the same event has to be tried again.
            ConfigurationError: Stripe cannot be asked as the settings are.
        """
        match notice.kind:
            case None:
                return just(NoticeResult.IGNORED, f"nothing is done about {notice.type}")
            case NoticeKind.CUSTOMER_DELETED:
                return _deletion(notice)
            case NoticeKind.INVOICE:
                return _asked(lambda: _invoice(notice, self.stripe().provider))
            case NoticeKind.CHECKOUT:
                return _asked(lambda: _checkout(notice, self.stripe().reads, self.terms))
            case NoticeKind.METER_ERRORS:
                return _asked(lambda: _meter_errors(notice, self.stripe(), self.confirmations))


def _asked(prepare: Callable[[], Effect]) -> Effect:
    """What Stripe will not answer otherwise however often it is asked keeps the event."""
    try:
        return prepare()
    except NotFound as error:
        return just(NoticeResult.KEPT, str(error))
    except Unreadable as error:
        return just(NoticeResult.KEPT, error.reason)
    except ProviderUnavailable as error:
        if error.cause is None or VERDICTS[error.cause] is not ProviderVerdict.REFUSED:
            raise
        return just(NoticeResult.KEPT, str(error))


def just(result: NoticeResult, detail: str) -> Effect:
    """An effect that changes nothing."""
    return lambda _connection, _now: EventOutcome(result=result, detail=detail)


def _deletion(notice: ProviderNotice) -> Effect:
    # Nothing is asked: a deletion is for good, and no id is used again.
    return lambda connection, _now: note_deletion(
        connection, "stripe", notice.thing, notice.happened_at
    )


def _invoice(notice: ProviderNotice, provider: Provider) -> Effect:
    try:
        invoice = provider.provider_invoice(notice.thing)
    except NotFound:
        # Most accounts have invoices for other things too.
        return just(NoticeResult.IGNORED, f"invoice {notice.thing} bills no metered usage of ours")
    failed_at = notice.happened_at if notice.type == PAYMENT_FAILED else None
    return lambda connection, now: note_invoice(
        connection, provider.name, CustomerIds.STRIPE, invoice, now, failed_at=failed_at
    )


def _checkout(notice: ProviderNotice, reads: StripeReads, terms: TopupTerms) -> Effect:
    checkout = read_checkout(reads.checkout(notice.thing))
    return lambda connection, _now: note_checkout(connection, checkout, terms)


def _meter_errors(
    notice: ProviderNotice, stripe: StripeAccess, confirmations: ConfirmationStore
) -> Effect:
    errors = read_meter_errors(stripe.reads.thin_event(notice.id))
    meter = stripe.reads.meter_name(notice.thing) if notice.thing else None
    return lambda connection, now: _note_meter_errors(
        connection, confirmations, stripe.provider.name, meter, errors, now
    )


def _note_meter_errors(
    connection: sa.Connection,
    confirmations: ConfirmationStore,
    provider: str,
    meter: str | None,
    errors: MeterErrors,
    now: datetime,
) -> EventOutcome:
    """Have everything of the window read back; the listed ones are known to be rejected."""
    again = confirmations.recheck(
        provider, meter, errors.start, errors.end, now=now, connection=connection
    )
    listed = 0
    for cause in sorted(set(errors.sampled.values())):
        identifiers = sorted(name for name, why in errors.sampled.items() if why is cause)
        listed += confirmations.recheck_identifiers(
            identifiers, cause, now=now, detail=errors.summary, connection=connection
        )
    about = f"{meter or 'no meter'}: {errors.summary}"
    if not again and not listed:
        detail = f"{about}; nothing of ours was sent in that window"
        return EventOutcome(result=NoticeResult.IGNORED, detail=detail)
    return EventOutcome(
        result=NoticeResult.DONE,
        detail=f"{about}; {again} reports are read back again, {listed} are parked",
        alarm=REJECTED,
    )
