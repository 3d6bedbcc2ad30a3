"""A customer that was deleted at the provider: nothing more is sent there, and nothing is lost.

What was used stays in the log and in parked reports; it goes to whoever is linked next. What the
provider had taken and not invoiced cannot be had back; reading it back shows it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

import sqlalchemy as sa

from billing.postgres.schema import customers
from billing.providers.port import ProviderCause
from billing.stripe_webhooks.event_store import EventOutcome, WebhookAlarm
from billing.stripe_webhooks.stripe_event import EventResult

DELETED: Final = WebhookAlarm(
    "customer_deleted_at_provider",
    "usage goes on in the log and waits: billing customers link. What the provider had taken and "
    "not invoiced is gone there",
)

# In the order of their ids, as everybody who locks several.
_PARK: Final = sa.text(
    """
    WITH theirs AS (
        SELECT id FROM usage_reports
        WHERE provider = :provider AND customer_ref = :ref AND state IN ('pending', 'unknown')
        ORDER BY id
        FOR UPDATE
    )
    UPDATE usage_reports AS r SET state = 'parked', cause = :cause, detail = :detail
    FROM theirs WHERE r.id = theirs.id
    """
)


def note_deletion(
    connection: sa.Connection, provider: str, customer_ref: str, happened_at: datetime
) -> EventOutcome:
    """Forget who is linked, if it still is that one, and park what was to be sent there.

    Reports that are being sent keep their claim: what the provider takes of them is read back.

    Args:
        connection: The transaction of the event.
        provider: Who deleted the customer.
        customer_ref: The provider's id of it; ids are never used again.
        happened_at: When it was deleted.
    """
    unlink = (
        sa.update(customers)
        .where(customers.c.stripe_customer_id == customer_ref)
        .values(stripe_customer_id=None, stripe_deleted_at=happened_at)
        .returning(customers.c.id)
    )
    customer = connection.scalar(unlink)
    parked = connection.execute(
        _PARK,
        {
            "provider": provider,
            "ref": customer_ref,
            "cause": ProviderCause.CUSTOMER_MISSING.value,
            "detail": f"{customer_ref} was deleted at the provider; link another customer",
        },
    ).rowcount
    if customer is None and not parked:
        return EventOutcome(
            result=EventResult.IGNORED,
            detail=f"{customer_ref} is not linked to a customer of ours",
        )
    whose = f"{customer} is linked to nobody now" if customer else "it was not linked any more"
    return EventOutcome(
        result=EventResult.DONE,
        detail=f"{customer_ref} was deleted: {whose}; {parked} reports are parked",
        alarm=DELETED if customer else None,
    )
