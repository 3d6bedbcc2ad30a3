"""The usage event: one immutable fact about one task, and its wire format.

A task has one *line* per thing to be said about it, and each line has its own event id:

- ``<sku>``: it was done and this is what it costs;
- ``failed:<sku>:<admission>``: an admitted run ended without a charge;
- ``retried:<sku>:<attempt>``: an attempt that cost us something asked to be run again;
- ``denied:<sku>:<reason>``: it was refused. A later admission of the same task is another line.

``UsageEvent`` is the one definition of an event: the wire (``billing.core.usage_event_json``), the
log's columns (``billing.core.event_columns``) and everything made of those follow its fields.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from operator import attrgetter
from typing import Annotated, Any, Final, Self
from uuid import UUID

import msgspec
import orjson
from msgspec import Meta

from billing.core.clock import format_instant
from billing.core.credits import MAX_MICROCREDITS
from billing.core.errors import InvalidValue, WeighbridgeError
from billing.core.event_ids import instant_of

SCHEMA: Final = 1
"""Version of the wire format that is written."""

ADDED_IN: Final[Mapping[str, int]] = {}
"""The schema that brought a field, by the names of those that schema 1 does not know."""

CONTENT_TYPE: Final = "application/json"
MAX_BODY_BYTES: Final = 65_536
MAX_TEXT: Final = 500
MAX_DIMENSIONS: Final = 20

Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Label = Annotated[str, Meta(max_length=MAX_TEXT, extra={"repeats": True})]
"""A text that comes again and again: a name of something, not of one task."""
Amount = Annotated[int, Meta(ge=0, le=MAX_MICROCREDITS, extra={"is": "amount"})]
Count = Annotated[int, Meta(ge=0, le=MAX_MICROCREDITS)]


class Outcome(StrEnum):
    """How the task ended, as billing sees it."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DENIED = "denied"


class DeadReason(StrEnum):
    """Why an event cannot be billed. Each is kept with its message, listed and replayable."""

    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    TOO_LARGE = "too_large"
    UNKNOWN_SCHEMA = "unknown_schema"
    MISSING_FIELD = "missing_field"
    UNKNOWN_FIELD = "unknown_field"
    INVALID_FIELD = "invalid_field"
    INVALID_ID = "invalid_id"
    ID_MISMATCH = "id_mismatch"
    AMOUNT_NEGATIVE = "amount_negative"
    AMOUNT_NOT_A_NUMBER = "amount_not_a_number"
    AMOUNT_FRACTIONAL = "amount_fractional"
    AMOUNT_TOO_LARGE = "amount_too_large"
    WRONG_CURRENCY = "wrong_currency"
    UNKNOWN_SKU = "unknown_sku"
    UNKNOWN_CUSTOMER = "unknown_customer"
    IN_THE_FUTURE = "in_the_future"
    TOO_OLD = "too_old"
    CONFLICT = "conflict"
    REFUSED_BY_DATABASE = "refused_by_database"
    DELIVERY_LIMIT = "delivery_limit"


class InvalidEvent(WeighbridgeError):  # noqa: N818 - a kind of event, beside UsageEvent
    """A message that cannot be billed; kept with its reason."""

    def __init__(self, reason: DeadReason, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}")
        self.args = (reason.value, detail)


class UsageEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One immutable fact. Amounts in microcredits, provider cost in millionths of ``currency``.

    ``amount_microcredits`` is what was charged and is what the customer is billed;
    ``shortfall_microcredits`` is what it should have cost beyond that when neither the hold nor the
    balance covered it. ``quota_epoch`` says which generation of the Redis balance counted the
    amount (0: none did); see ``docs/architecture.md``, "The fence".
    """

    id: UUID
    customer: Label
    sku: Label
    line: Label
    outcome: Outcome
    reason: Label = ""
    quantity: Amount = 0
    amount_microcredits: Amount = 0
    shortfall_microcredits: Amount = 0
    held_microcredits: Amount = 0
    cost_micros: Amount = 0
    currency: Label = "USD"
    subject: Text | None = None
    dimensions: dict[str, str] = msgspec.field(default_factory=dict)
    task_id: Text
    task_name: Label = ""
    root_id: Text | None = None
    parent_id: Text | None = None
    group_id: Text | None = None
    attempt: Count = 0
    worker: Label = ""
    degraded: bool = False
    quota_epoch: Count = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def metered_at(self) -> datetime:
        """The instant the usage belongs to: the one in the id."""
        return instant_of(self.id)

    def settled(self, *, amount: int, shortfall: int, quota_epoch: int) -> Self:
        """This event with the figures that the quota store decided."""
        return msgspec.structs.replace(
            self,
            amount_microcredits=amount,
            shortfall_microcredits=shortfall,
            quota_epoch=quota_epoch,
        )

    def fingerprint(self) -> bytes:
        """16 bytes that two tellings of the same fact share; see ``fingerprint_of``."""
        return fingerprint_of(self)

    def to_wire(self) -> bytes:
        """The event as one JSON object, keys sorted, instants as RFC 3339 text."""
        wire: dict[str, object] = dict(zip(FIELDS, _values(self), strict=True))
        wire["schema"] = SCHEMA
        for name in _INSTANTS:
            value = wire[name]
            if isinstance(value, datetime):
                wire[name] = format_instant(value)
        return orjson.dumps(wire, option=orjson.OPT_SORT_KEYS)


FIELDS: Final = UsageEvent.__struct_fields__
"""Names of an event's fields: the one list of them."""
_values: Final = attrgetter(*FIELDS)
_INSTANTS: Final = ("started_at", "finished_at")


IDENTITY: Final = ("customer", "sku", "line", "task_id", "outcome")
USED: Final = (
    "quantity",
    "amount_microcredits",
    "cost_micros",
    "currency",
    "subject",
    "dimensions",
)
"""Both together are what makes a fact; ``USED`` counts where something was used."""

_SUCCEEDED: Final = Outcome.SUCCEEDED.value  # Python 3.11 takes microseconds to find a member
_identity: Final = attrgetter(*IDENTITY)
_used: Final = attrgetter(*USED)
_encode: Final = msgspec.json.Encoder(order="deterministic").encode


def fingerprint_of(event: Any) -> bytes:  # noqa: ANN401 - an event, or one as it was read
    """16 bytes that two tellings of the same fact share.

    Left out is what may differ between runs of the same task without being another fact: times,
    worker, attempt, the hold, the epoch. A denial, and a failure that cost nothing, is the same
    fact however often it is told; of any other outcome quantity, amount, provider cost, subject
    and dimensions count.

    Args:
        event: With the fields of ``IDENTITY`` and ``USED``.
    """
    same = _identity(event)
    if event.amount_microcredits or event.outcome == _SUCCEEDED:
        same += _used(event)
    return hashlib.sha256(_encode(same)).digest()[:16]


def usage_line(sku: str) -> str:
    """The line of what was done."""
    return sku


def failed_line(sku: str, admission: int) -> str:
    """The line of an admitted run that ended without a charge; one per admission of the task."""
    return f"failed:{sku}:{admission}"


def retried_line(sku: str, attempt: int) -> str:
    """The line of an attempt that ended in a retry; its cost is ours whatever comes after it."""
    return f"retried:{sku}:{attempt}"


def denied_line(sku: str, reason: str) -> str:
    """The line of a refusal; one per task and reason, however often it came back."""
    return f"denied:{sku}:{reason}"


def check_dimensions(dimensions: object) -> dict[str, str]:
    """``dimensions`` if they are at most 20 texts by name.

    Raises:
        InvalidValue: They are not.
    """
    if not isinstance(dimensions, dict) or len(dimensions) > MAX_DIMENSIONS:
        raise InvalidValue("dimensions", dimensions, f"use at most {MAX_DIMENSIONS} names")
    for name, value in dimensions.items():
        for text in (name, value):
            if not isinstance(text, str) or len(text) > MAX_TEXT or "\x00" in text:
                raise InvalidValue(
                    f"dimensions[{name!r:.40}]",
                    value,
                    f"use text of at most {MAX_TEXT} characters",
                )
    return dimensions
