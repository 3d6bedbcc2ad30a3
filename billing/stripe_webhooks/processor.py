"""Events to their effects: each once, in one transaction with the event's id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

import sqlalchemy as sa
import structlog

from billing.core.clock import Clock
from billing.core.errors import NotFound
from billing.core.failpoints import reach
from billing.providers.port import Provider, ProviderInvoice
from billing.reporting.destination import CustomerIds
from billing.stripe_webhooks.event_store import (
    EventOutcome,
    WebhookAlarm,
    WebhookEvents,
    begin,
    begin_again,
    finish,
)
from billing.stripe_webhooks.handlers import Effect, EventHandlers, just
from billing.stripe_webhooks.invoices import drafts, note_invoice
from billing.stripe_webhooks.stripe_event import (
    EventResult,
    StripeEvent,
    Unreadable,
    read_event,
    stand_in,
)

PROVIDER: Final = "stripe"

_log = structlog.get_logger(__name__)


class Reception(StrEnum):
    """The outcome of a webhook."""

    DONE = "done"
    IGNORED = "ignored"
    KEPT = "kept"
    ALREADY = "already"
    """It was told before, and is not done again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """The outcome of one event. ``customers`` are those whose balance Redis has to reload."""

    event_id: str
    type: str
    reception: Reception
    detail: str = ""
    customers: frozenset[str] = field(default_factory=frozenset)


@dataclass(slots=True, kw_only=True)
class Polled:
    """The invoices that a poll found."""

    done: int = 0
    ignored: int = 0

    def add(self, outcome: EventOutcome) -> None:
        """Count one."""
        if outcome.result is EventResult.DONE:
            self.done += 1
        else:
            self.ignored += 1


class WebhookProcessor:
    """Processes Stripe's events and polls invoices.

    Args:
        engine: PostgreSQL, as the owner role.
        handlers: What events do.
        live: Whether this installation bills real money; events of the other kind are ignored.
        customer_ids: By which id each provider knows customers.
        clock: The time.
    """

    def __init__(
        self,
        engine: sa.Engine,
        handlers: EventHandlers,
        *,
        live: bool,
        customer_ids: Mapping[str, CustomerIds],
        clock: Clock,
    ) -> None:
        self._engine = engine
        self._handlers = handlers
        self._live = live
        self._customer_ids = customer_ids
        self._clock = clock
        self._events = WebhookEvents(engine)

    def receive(self, body: bytes) -> Received:
        """Do what an event asks for, once, whoever delivers it how often in whatever order.

        Args:
            body: Of a webhook whose signature was checked.

        Raises:
            ProviderUnavailable: Stripe was needed and has no answer. Nothing was written.
            ConfigurationError: Stripe cannot be asked as the settings are. Nothing was written.
            sqlalchemy.exc.SQLAlchemyError: PostgreSQL. Nothing was written.
        """
        event, problem = self._read(body)
        if self._events.seen(PROVIDER, event.id):
            return _already(event)
        effect = self._effect(event, problem)
        with self._engine.begin() as connection:
            now = self._clock.now()
            if not begin(connection, PROVIDER, event, now):
                return _already(event)
            outcome = effect(connection, now)
            finish(connection, PROVIDER, event.id, outcome, body)
            reach("notice.before_commit")
        reach("notice.after_commit")
        _log_outcome(event, outcome)
        return _received(event, outcome)

    def retry(self, event_id: str) -> Received:
        """Try an event again that was kept. Where it still cannot be done it stays kept.

        Nothing is logged: the caller gets the outcome.

        Raises:
            NotFound: No such event came.
            ProviderUnavailable: As ``receive``; the event stays kept.
            ConfigurationError: As ``receive``; the event stays kept.
        """
        body = self._events.kept(PROVIDER, event_id)
        if body is None:
            return Received(event_id=event_id, type="", reception=Reception.ALREADY)
        event, problem = self._read(body)
        effect = self._effect(event, problem)
        with self._engine.begin() as connection:
            if not begin_again(connection, PROVIDER, event_id):
                return _already(event)
            now = self._clock.now()
            names = {event_id}
            # What could not be read was written down under another id than its own.
            if event.id != event_id and begin(connection, PROVIDER, event, now):
                names.add(event.id)
            elif event.id != event_id:
                effect = just(EventResult.IGNORED, f"it was told as {event.id}")
            outcome = effect(connection, now)
            for name in sorted(names):
                finish(connection, PROVIDER, name, outcome, body)
        return _received(event, outcome)

    def poll(self, provider: Provider, since: datetime) -> Polled:
        """Look at invoices without being told: a lost webhook then does not matter.

        Args:
            provider: Whose.
            since: Invoices created from here on; and all that were drafts when last seen.

        Raises:
            ProviderUnavailable: It has no answer; what was found before is done.
        """
        polled = Polled()
        with self._engine.connect() as connection:
            known = set(drafts(connection, provider.name))
        for invoice in provider.invoices_since(since):
            known.discard(invoice.provider_id)
            polled.add(self._note(provider, invoice))
        for ref in sorted(known):
            try:
                polled.add(self._note(provider, provider.provider_invoice(ref)))
            except NotFound:
                polled.ignored += 1
        return polled

    def _note(self, provider: Provider, invoice: ProviderInvoice) -> EventOutcome:
        ids = self._customer_ids[provider.name]
        with self._engine.begin() as connection:
            outcome = note_invoice(connection, provider.name, ids, invoice, self._clock.now())
        if outcome.alarm:
            _log_alarm(outcome.alarm, id=invoice.provider_id, detail=outcome.detail)
        return outcome

    def _read(self, body: bytes) -> tuple[StripeEvent, str]:
        """The event, and why it cannot be done (empty where it can)."""
        try:
            return read_event(body), ""
        except Unreadable as error:
            return stand_in(body, self._clock.now()), error.reason

    def _effect(self, event: StripeEvent, problem: str) -> Effect:
        if problem:
            return just(EventResult.KEPT, problem)
        if event.live != self._live:
            theirs, here = _mode(event.live), _mode(self._live)
            return just(
                EventResult.IGNORED, f"it is of {theirs} mode, and this installation of {here}"
            )
        return self._handlers.effect_of(event)


def _mode(live: bool) -> str:
    return "live" if live else "test"


def _already(event: StripeEvent) -> Received:
    return Received(event_id=event.id, type=event.type, reception=Reception.ALREADY)


def _log_outcome(event: StripeEvent, outcome: EventOutcome) -> None:
    facts = {"id": event.id, "type": event.type, "result": outcome.result.value}
    if outcome.alarm:
        _log_alarm(outcome.alarm, **facts, detail=outcome.detail)
    elif outcome.result is EventResult.KEPT:
        _log.warning("stripe_event_kept", **facts, detail=outcome.detail)
    else:
        _log.info("stripe_event_processed", **facts, detail=outcome.detail)


def _log_alarm(alarm: WebhookAlarm, **facts: str) -> None:
    _log.error(alarm.event, **facts, remedy=alarm.remedy)


def _received(event: StripeEvent, outcome: EventOutcome) -> Received:
    return Received(
        event_id=event.id,
        type=event.type,
        reception=Reception(outcome.result.value),
        detail=outcome.detail,
        customers=outcome.customers,
    )
