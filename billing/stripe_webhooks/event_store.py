"""Events in PostgreSQL: each is written down once, in the transaction of its effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from billing.core.errors import NotFound
from billing.postgres.schema import webhook_events
from billing.stripe_webhooks.stripe_event import EventResult, StripeEvent

MAX_DETAIL: Final = 500

_ROW: Final = (
    *(webhook_events.c.provider, webhook_events.c.event_id, webhook_events.c.type),
    *(webhook_events.c.happened_at, webhook_events.c.received_at),
    *(webhook_events.c.result, webhook_events.c.detail),
)


@dataclass(frozen=True, slots=True)
class WebhookAlarm:
    """A log line for operators: ``event`` names it, ``remedy`` says what to do."""

    event: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventOutcome:
    """The result of an event.

    ``customers`` are those whose balance changed: Redis has to reload them.
    """

    result: EventResult
    detail: str = ""
    alarm: WebhookAlarm | None = None
    customers: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEvent:
    """An event that came. ``happened_at`` is the provider's time, ``received_at`` ours."""

    provider: str
    event_id: str
    type: str
    happened_at: datetime
    received_at: datetime
    result: EventResult
    detail: str


class WebhookEvents:
    """Events that came by webhook.

    Args:
        engine: PostgreSQL, as the owner role.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def seen(self, provider: str, event_id: str) -> bool:
        """Whether an event was written down. Only a shortcut: ``begin`` is what decides."""
        query = sa.select(webhook_events.c.event_id).where(*_is(provider, event_id))
        with self._engine.connect() as connection:
            return connection.execute(query).first() is not None

    def list(
        self, provider: str, *, result: EventResult | None = None, limit: int = 100
    ) -> Sequence[WebhookEvent]:
        """The events, newest first.

        Args:
            provider: Whose.
            result: Only those with this result.
            limit: The most to list.
        """
        query = sa.select(*_ROW).where(webhook_events.c.provider == provider)
        if result is not None:
            query = query.where(webhook_events.c.result == result.value)
        order = webhook_events.c.received_at.desc(), webhook_events.c.event_id
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(*order).limit(limit)).mappings()
            return [_event(row) for row in rows]

    def kept(self, provider: str, event_id: str) -> bytes | None:
        """The body of an event that was kept; None where it was dealt with.

        Raises:
            NotFound: No such event came.
        """
        query = sa.select(webhook_events.c.body).where(*_is(provider, event_id))
        # PostgreSQL cannot even compare with a NUL; no event has one.
        with self._engine.connect() as connection:
            row = None if "\x00" in event_id else connection.execute(query).one_or_none()
        if row is None:
            raise NotFound("event", event_id, "see billing stripe events")
        return None if row.body is None else bytes(row.body)


def begin(connection: sa.Connection, provider: str, event: StripeEvent, now: datetime) -> bool:
    """Write an event down, before its effect and in its transaction.

    Returns:
        False where it is there already. A second transaction with the same event waits here until
        the first one has ended.
    """
    new = (
        insert(webhook_events)
        .values(
            provider=provider,
            event_id=event.id,
            type=event.type,
            happened_at=event.happened_at,
            received_at=now,
            result=EventResult.DONE.value,
        )
        .on_conflict_do_nothing()
        .returning(webhook_events.c.event_id)
    )
    return connection.execute(new).first() is not None


def begin_again(connection: sa.Connection, provider: str, event_id: str) -> bool:
    """Lock an event that was kept; False where another has dealt with it meanwhile."""
    query = sa.select(webhook_events.c.result).where(*_is(provider, event_id)).with_for_update()
    return connection.execute(query).scalar_one_or_none() == EventResult.KEPT.value


def finish(
    connection: sa.Connection, provider: str, event_id: str, outcome: EventOutcome, body: bytes
) -> None:
    """Write down what became of an event; its body stays only where it is kept."""
    values: dict[str, Any] = {
        "result": outcome.result.value,
        "detail": plain(outcome.detail),
        "body": body if outcome.result is EventResult.KEPT else None,
    }
    connection.execute(sa.update(webhook_events).where(*_is(provider, event_id)).values(**values))


def plain(text: str) -> str:
    """``text`` as PostgreSQL can keep it: what cannot be printed is replaced, the end cut off."""
    return "".join(each if each.isprintable() else "?" for each in text)[:MAX_DETAIL]


def _is(provider: str, event_id: str) -> tuple[sa.ColumnElement[bool], ...]:
    return webhook_events.c.provider == provider, webhook_events.c.event_id == event_id


def _event(row: sa.RowMapping) -> WebhookEvent:
    return WebhookEvent(**{**row, "result": EventResult(row["result"])})
