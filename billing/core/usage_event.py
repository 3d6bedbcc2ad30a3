"""The usage event: one immutable fact about one task, and its wire format.

A task has one *line* per thing to be said about it, and each line has its own event id:

- ``<sku>``: it was done and this is what it costs;
- ``failed:<sku>:<admission>``: an admitted run ended without a charge;
- ``retried:<sku>:<attempt>``: an attempt that cost us something asked to be run again;
- ``denied:<sku>:<reason>``: it was refused. A later admission of the same task is another line.

On the wire an event is one JSON object. ``schema`` is its version; a consumer that does not know a
version keeps the message as a dead letter, so producers may be upgraded first or last.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from operator import attrgetter
from typing import Any, Final, Self
from uuid import UUID

import orjson

from billing.core.clock import format_instant, parse_instant
from billing.core.credits import MAX_MICROCREDITS
from billing.core.errors import InvalidValue, WeighbridgeError
from billing.core.event_ids import event_id, instant_of

SCHEMA: Final = 1
CONTENT_TYPE: Final = "application/json"
MAX_BODY_BYTES: Final = 65_536
MAX_TEXT: Final = 500
MAX_DIMENSIONS: Final = 20
_CURRENCY: Final = re.compile(r"[A-Z]{3}", re.ASCII)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageEvent:
    """One immutable fact. Amounts in microcredits, provider cost in millionths of ``currency``.

    ``amount_microcredits`` is what was charged and is what the customer is billed;
    ``shortfall_microcredits`` is what it should have cost beyond that when neither the hold nor the
    balance covered it. ``quota_epoch`` says which generation of the Redis balance counted the
    amount (0: none did); see ``docs/architecture.md``, "The fence".
    """

    id: UUID
    customer: str
    sku: str
    line: str
    outcome: Outcome
    reason: str = ""
    quantity: int = 0
    amount_microcredits: int = 0
    shortfall_microcredits: int = 0
    held_microcredits: int = 0
    cost_micros: int = 0
    currency: str = "USD"
    subject: str | None = None
    dimensions: dict[str, str] = field(default_factory=dict)
    task_id: str
    task_name: str = ""
    root_id: str | None = None
    parent_id: str | None = None
    group_id: str | None = None
    attempt: int = 0
    worker: str = ""
    degraded: bool = False
    quota_epoch: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def metered_at(self) -> datetime:
        """The instant the usage belongs to: the one in the id."""
        return instant_of(self.id)

    def settled(self, *, amount: int, shortfall: int, quota_epoch: int) -> Self:
        """This event with the figures that the quota store decided."""
        # dataclasses.replace does the same in twice the time, for every event on its way.
        values = dict(zip(FIELDS, _values(self), strict=True))
        values["amount_microcredits"] = amount
        values["shortfall_microcredits"] = shortfall
        values["quota_epoch"] = quota_epoch
        return type(self)(**values)

    def fingerprint(self) -> bytes:
        """16 bytes that two tellings of the same fact share; see ``fingerprint_of``."""
        return fingerprint_of(
            self.customer,
            self.sku,
            self.line,
            self.task_id,
            self.outcome.value,
            self.quantity,
            self.amount_microcredits,
            self.cost_micros,
            self.currency,
            self.subject,
            self.dimensions,
        )

    def to_wire(self) -> bytes:
        """The event as one JSON object, keys sorted, instants as RFC 3339 text."""
        wire: dict[str, object] = dict(zip(FIELDS, _values(self), strict=True))
        wire["schema"] = SCHEMA
        for name in _INSTANTS:
            value = wire[name]
            if isinstance(value, datetime):
                wire[name] = format_instant(value)
        return orjson.dumps(wire, option=orjson.OPT_SORT_KEYS)


FIELDS: Final = tuple(f.name for f in fields(UsageEvent))
_values: Final = attrgetter(*FIELDS)
_REQUIRED: Final = frozenset({"id", "customer", "sku", "line", "outcome", "task_id"})
_AMOUNTS: Final = (
    "quantity",
    "amount_microcredits",
    "shortfall_microcredits",
    "held_microcredits",
    "cost_micros",
)
_COUNTS: Final = ("attempt", "quota_epoch")
_TEXTS: Final = ("customer", "sku", "line", "reason", "task_id", "task_name", "worker")
_OPTIONAL_TEXTS: Final = ("subject", "root_id", "parent_id", "group_id")
_INSTANTS: Final = ("started_at", "finished_at")
_NAMES: Final = frozenset(FIELDS)
_OUTCOMES: Final = frozenset(outcome.value for outcome in Outcome)


def fingerprint_of(
    customer: str,
    sku: str,
    line: str,
    task_id: str,
    outcome: str,
    quantity: int,
    amount_microcredits: int,
    cost_micros: int,
    currency: str,
    subject: str | None,
    dimensions: dict[str, str],
) -> bytes:
    """16 bytes that two tellings of the same fact share.

    Left out is what may differ between runs of the same task without being another fact: times,
    worker, attempt, the hold, the epoch. A denial, and a failure that cost nothing, is the same
    fact however often it is told; of any other outcome quantity, amount, provider cost, subject
    and dimensions count.
    """
    same: list[object] = [customer, sku, line, task_id, outcome]
    if amount_microcredits or outcome == _SUCCEEDED:
        same += [quantity, amount_microcredits, cost_micros, currency, subject, dimensions]
    return hashlib.sha256(orjson.dumps(same, option=orjson.OPT_SORT_KEYS)).digest()[:16]


_SUCCEEDED: Final = Outcome.SUCCEEDED.value  # Python 3.11 takes microseconds to find a member


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


def from_wire(body: bytes) -> UsageEvent:
    """The event of a message body. Checks what can be checked without asking anybody.

    Raises:
        InvalidEvent: With the reason under which the message is to be kept.
    """
    wire = _object(body)
    _check_names(wire)
    _check_figures(wire)
    _check_texts(wire)
    _check_rest(wire)
    identifier = _identifier(wire["id"])
    for name in _INSTANTS:
        if name in wire:
            wire[name] = _instant(name, wire[name])
    wire |= {"id": identifier, "outcome": Outcome(wire["outcome"])}
    event = UsageEvent(**wire)
    if event_id(event.task_id, event.line, event.metered_at) != identifier:
        raise InvalidEvent(
            DeadReason.ID_MISMATCH, f"id {identifier} is not the id of this task_id and line"
        )
    return event


def _check_names(wire: dict[str, Any]) -> None:
    for name in wire.keys() - _NAMES:
        raise InvalidEvent(DeadReason.UNKNOWN_FIELD, f"{name[:80]}={wire[name]!r:.80}")
    for name in sorted(_REQUIRED - wire.keys()):
        raise InvalidEvent(DeadReason.MISSING_FIELD, name)


def _check_figures(wire: dict[str, Any]) -> None:
    for name in _AMOUNTS:
        if name in wire:
            _check_amount(name, wire[name])
    for name in _COUNTS:
        if name in wire and not _is_count(wire[name]):
            raise _invalid(name, wire[name], "an integer from 0 to 2^53")


def _check_texts(wire: dict[str, Any]) -> None:
    for name in _TEXTS:
        if name in wire:
            _check_text(name, wire[name], optional=False)
    for name in _OPTIONAL_TEXTS:
        if name in wire:
            _check_text(name, wire[name], optional=True)


def _object(body: bytes) -> dict[str, Any]:
    if len(body) > MAX_BODY_BYTES:
        raise InvalidEvent(DeadReason.TOO_LARGE, f"{len(body)} bytes; at most {MAX_BODY_BYTES}")
    try:
        wire = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # The standard library also reads NaN and Infinity, so that these get a reason of their own.
        try:
            wire = json.loads(body)
            # It also reads half a surrogate pair, which no text of ours can be.
            json.dumps(wire, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            raise InvalidEvent(DeadReason.NOT_JSON, str(error)[:200]) from None
    if not isinstance(wire, dict):
        raise InvalidEvent(DeadReason.NOT_AN_OBJECT, f"a {type(wire).__name__}")
    schema = wire.pop("schema", None)
    if schema != SCHEMA or isinstance(schema, bool | float):
        raise InvalidEvent(DeadReason.UNKNOWN_SCHEMA, f"schema={schema!r:.80}; known: {SCHEMA}")
    return wire


def _check_amount(name: str, value: object) -> None:
    # Nearly always: told apart from a bool, which is an int too.
    if type(value) is int and 0 <= value <= MAX_MICROCREDITS:
        return
    shown = f"{name}={value!r:.80}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidEvent(DeadReason.AMOUNT_NOT_A_NUMBER, shown)
    if value != value or value in (float("inf"), float("-inf")):  # noqa: PLR0124 - NaN alone differs from itself
        raise InvalidEvent(DeadReason.AMOUNT_NOT_A_NUMBER, shown)
    if value < 0:
        raise InvalidEvent(DeadReason.AMOUNT_NEGATIVE, shown)
    if value > MAX_MICROCREDITS:
        raise InvalidEvent(DeadReason.AMOUNT_TOO_LARGE, f"{shown}; at most 2^53")
    if isinstance(value, float):
        raise InvalidEvent(DeadReason.AMOUNT_FRACTIONAL, f"{shown}; amounts are integers")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_MICROCREDITS


def _check_text(name: str, value: object, *, optional: bool) -> None:
    if optional and value is None:
        return
    if not isinstance(value, str) or len(value) > MAX_TEXT or "\x00" in value:
        raise _invalid(name, value, f"text of at most {MAX_TEXT} characters without NUL")


def _check_rest(wire: dict[str, Any]) -> None:
    if not isinstance(wire["outcome"], str) or wire["outcome"] not in _OUTCOMES:
        raise _invalid("outcome", wire["outcome"], f"one of {', '.join(Outcome)}")
    if not isinstance(wire.get("degraded", False), bool):
        raise _invalid("degraded", wire["degraded"], "true or false")
    currency = wire.get("currency", "USD")
    if not isinstance(currency, str) or not _CURRENCY.fullmatch(currency):
        raise _invalid("currency", currency, "an ISO 4217 code such as USD")
    try:
        check_dimensions(wire.get("dimensions", {}))
    except InvalidValue as error:
        raise InvalidEvent(DeadReason.INVALID_FIELD, str(error)) from None


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


def _identifier(value: object) -> UUID:
    try:
        identifier = UUID(value) if isinstance(value, str) else None
        if identifier is not None and str(identifier) == value:
            instant_of(identifier)
            return identifier
    except (ValueError, OverflowError):
        pass
    raise InvalidEvent(DeadReason.INVALID_ID, f"id={value!r:.80}; use a lower-case UUIDv7")


def _instant(name: str, value: Any) -> datetime | None:  # noqa: ANN401 - JSON; checked right here
    if value is None:
        return None
    try:
        return parse_instant(value, field=name)
    except InvalidValue as error:
        raise InvalidEvent(DeadReason.INVALID_FIELD, str(error)) from None


def _invalid(name: str, value: object, expected: str) -> InvalidEvent:
    return InvalidEvent(DeadReason.INVALID_FIELD, f"{name}={value!r:.80}; use {expected}")
