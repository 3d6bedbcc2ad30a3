"""An event as Stripe sends it, in words of ours. Pure.

Events come in two kinds: *snapshots* (``object: event``) have the thing they are about inside, as
it was; *thin* ones (``object: v2.core.event``) have only its id. Of both only ids are taken: they
come in any order, so what counts is the thing as Stripe has it when we ask.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

import orjson

from billing.core.clock import parse_instant
from billing.core.errors import InvalidValue

MAX_NAME: Final = 255
"""Characters of an id or a type."""

UNREADABLE: Final = "unreadable"
"""The type of what could not be read."""


class EventResult(StrEnum):
    """The result of an event."""

    DONE = "done"
    IGNORED = "ignored"
    """There is nothing to do about it, now or later."""
    KEPT = "kept"
    """Nothing could be done about it yet; it is kept as it came and can be tried again."""


class EventKind(StrEnum):
    """The kind of an event."""

    INVOICE = "invoice"
    CUSTOMER_DELETED = "customer_deleted"
    CHECKOUT = "checkout"
    METER_ERRORS = "meter_errors"


PAYMENT_FAILED: Final = "invoice.payment_failed"

KINDS: Final[Mapping[str, EventKind]] = {
    "invoice.created": EventKind.INVOICE,
    "invoice.finalized": EventKind.INVOICE,
    "invoice.paid": EventKind.INVOICE,
    PAYMENT_FAILED: EventKind.INVOICE,
    "invoice.voided": EventKind.INVOICE,
    "invoice.marked_uncollectible": EventKind.INVOICE,
    "invoice.deleted": EventKind.INVOICE,
    "customer.deleted": EventKind.CUSTOMER_DELETED,
    "checkout.session.completed": EventKind.CHECKOUT,
    "checkout.session.async_payment_succeeded": EventKind.CHECKOUT,
    "v1.billing.meter.error_report_triggered": EventKind.METER_ERRORS,
    "v1.billing.meter.no_meter_found": EventKind.METER_ERRORS,
}
"""The types that are acted on; any other is ignored."""

_NEED_THE_THING: Final = frozenset(
    {EventKind.INVOICE, EventKind.CUSTOMER_DELETED, EventKind.CHECKOUT}
)


class Unreadable(Exception):  # noqa: N818 - the event is unreadable
    """A body, or an answer of Stripe's about it, that is not as Stripe describes it."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class StripeEvent:
    """One event.

    ``thing`` is the id of what it is about, empty where there is none; ``live`` says that it is
    about real money; ``happened_at`` is Stripe's time of it.
    """

    id: str
    type: str
    happened_at: datetime
    live: bool
    thing: str

    @property
    def kind(self) -> EventKind | None:
        """The kind; None where nothing is done about it."""
        return KINDS.get(self.type)


def read_event(body: bytes) -> StripeEvent:
    """Read the event in a webhook's body.

    Raises:
        Unreadable: It is no event, or lacks what its kind needs.
    """
    sent = mapping(_json(body), "the body")
    thin = _shape(sent) == "v2.core.event"
    event = StripeEvent(
        id=_name(sent, "id"),
        type=_name(sent, "type"),
        happened_at=_instant(sent, "created") if thin else _unix(sent, "created"),
        live=_flag(sent, "livemode"),
        thing=_related(sent) if thin else _subject(sent),
    )
    if event.kind in _NEED_THE_THING and not event.thing:
        raise Unreadable(f"{event.type} does not say what it is about")
    return event


def stand_in(body: bytes, received_at: datetime) -> StripeEvent:
    """Make an event for a body that cannot be read: the same body has the same id."""
    digest = hashlib.sha256(body).hexdigest()
    return StripeEvent(
        id=f"sha256:{digest}", type=UNREADABLE, happened_at=received_at, live=False, thing=""
    )


def mapping(value: object, what: str) -> Mapping[str, Any]:
    """``value`` if it is an object of JSON.

    Raises:
        Unreadable: It is something else.
    """
    if not isinstance(value, Mapping):
        raise Unreadable(f"{what} is not an object")
    return value


def instant_of(value: object, what: str) -> datetime:
    """The instant of an RFC 3339 text.

    Raises:
        Unreadable: It is none.
    """
    try:
        return parse_instant(value, field=what)  # type: ignore[arg-type]  # refuses what is no text
    except InvalidValue as error:
        raise Unreadable(f"{what} is not an instant") from error


def is_name(value: object) -> bool:
    """Whether it is a text that can be an id or a type, and that PostgreSQL can keep."""
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable()


def _json(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except ValueError as error:
        raise Unreadable("the body is not JSON") from error


def _shape(event: Mapping[str, Any]) -> str:
    shape = event.get("object")
    if not isinstance(shape, str) or shape not in {"event", "v2.core.event"}:
        raise Unreadable("it is neither an event nor a v2.core.event")
    return shape


def _name(event: Mapping[str, Any], field: str) -> str:
    if not is_name(event.get(field)):
        raise Unreadable(f"its {field} is not a name")
    return str(event[field])


def _flag(event: Mapping[str, Any], field: str) -> bool:
    if not isinstance(event.get(field), bool):
        raise Unreadable(f"its {field} is neither true nor false")
    return bool(event[field])


def _instant(event: Mapping[str, Any], field: str) -> datetime:
    return instant_of(event.get(field), f"its {field}")


def _unix(event: Mapping[str, Any], field: str) -> datetime:
    seconds = event.get(field)
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not 0 <= seconds < 2**33:
        raise Unreadable(f"its {field} is not a time in seconds")
    return datetime.fromtimestamp(seconds, UTC)


def _subject(event: Mapping[str, Any]) -> str:
    data = event.get("data")
    return _id_in(data.get("object")) if isinstance(data, Mapping) else ""


def _related(event: Mapping[str, Any]) -> str:
    return _id_in(event.get("related_object"))


def _id_in(thing: object) -> str:
    found = thing.get("id") if isinstance(thing, Mapping) else None
    return str(found) if is_name(found) else ""
