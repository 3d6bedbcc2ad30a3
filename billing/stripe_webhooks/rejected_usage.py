"""Usage that Stripe took and then rejected: everything of the window is read back."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import sqlalchemy as sa

from billing.reporting.confirmations import ConfirmationStore
from billing.stripe_webhooks.event_store import EventOutcome, WebhookAlarm
from billing.stripe_webhooks.meter_errors import MeterErrors
from billing.stripe_webhooks.stripe_event import EventResult

REJECTED: Final = WebhookAlarm(
    "provider_rejected_usage",
    "it is not billed until it is taken again: billing report list --state parked",
)


def note_rejected_usage(
    connection: sa.Connection,
    confirmations: ConfirmationStore,
    provider: str,
    meter: str | None,
    errors: MeterErrors,
    now: datetime,
) -> EventOutcome:
    """Have everything of the window read back; park the listed reports, which are rejected.

    Args:
        connection: The transaction of the event.
        confirmations: Reports to be read back.
        provider: Who rejected them.
        meter: Only reports to this one; None: to any.
        errors: The window, and the reports that are listed.
        now: The time.
    """
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
        return EventOutcome(result=EventResult.IGNORED, detail=detail)
    return EventOutcome(
        result=EventResult.DONE,
        detail=f"{about}; {again} reports are read back again, {listed} are parked",
        alarm=REJECTED,
    )
