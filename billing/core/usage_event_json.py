"""Usage events as JSON: reading the wire, and the reason why a message is not an event. Pure.

On the wire an event is one JSON object (``UsageEvent.to_wire`` writes it) that names its schema:
a consumer that does not know a version keeps the message as a dead letter, so producers may be
upgraded first or last. A field that its schema does not have makes a dead letter as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import Annotated, Any, Final, Literal, get_type_hints
from uuid import UUID

import msgspec
import orjson

from billing.core.clock import parse_instant
from billing.core.credits import MAX_MICROCREDITS
from billing.core.errors import InvalidValue
from billing.core.event_ids import event_id, instant_of
from billing.core.usage_event import (
    ADDED_IN,
    FIELDS,
    MAX_BODY_BYTES,
    MAX_TEXT,
    SCHEMA,
    Amount,
    Count,
    DeadReason,
    InvalidEvent,
    Outcome,
    Text,
    UsageEvent,
    check_dimensions,
)

_CURRENCY: Final = re.compile(r"[A-Z]{3}", re.ASCII)
_SCHEMAS: Final[Mapping[int, frozenset[str]]] = {
    schema: frozenset(name for name in FIELDS if ADDED_IN.get(name, 1) <= schema)
    for schema in range(1, SCHEMA + 1)
}
"""The fields that each version of the wire has."""

_HINTS: Final = get_type_hints(UsageEvent, include_extras=True)
_REQUIRED: Final = frozenset(
    field.name for field in msgspec.structs.fields(UsageEvent) if field.required
)
_AMOUNTS: Final = tuple(name for name in FIELDS if _HINTS[name] == Amount)
_COUNTS: Final = tuple(name for name in FIELDS if _HINTS[name] == Count)
_INSTANTS: Final = tuple(name for name in FIELDS if _HINTS[name] == datetime | None)
_OPTIONAL_TEXTS: Final = tuple(name for name in FIELDS if _HINTS[name] == Text | None)
_TEXTS: Final = tuple(
    name
    for name in FIELDS
    if name != "currency" and getattr(_HINTS[name], "__origin__", None) is str
)
_OUTCOMES: Final = frozenset(outcome.value for outcome in Outcome)
_ON_THE_WIRE: Final[Mapping[str, Any]] = {
    "id": Annotated[str, msgspec.Meta(min_length=36, max_length=36)],
    "outcome": Literal[tuple(outcome.value for outcome in Outcome)],
    "dimensions": msgspec.Raw,
    **dict.fromkeys(_INSTANTS, str | None),
}
"""Types of fields whose JSON is looked at more closely by whoever decodes it."""


def wire_struct(schema: int, names: AbstractSet[str]) -> Any:  # noqa: ANN401 - a class made here
    """The Struct of one schema: the event's fields with their limits, as JSON has them.

    Args:
        schema: Its number.
        names: The fields that it knows; of others its instances have the defaults.
    """
    known: list[Any] = [("schema", Literal[schema])]
    unknown: dict[str, Any] = {}
    for each in msgspec.structs.fields(UsageEvent):
        kind = _ON_THE_WIRE.get(each.name, _HINTS[each.name])
        default = _EMPTY if each.name == "dimensions" else each.default
        if each.name not in names:
            unknown[each.name] = default
        else:
            known.append((each.name, kind) if each.required else (each.name, kind, default))
    return msgspec.defstruct(
        f"Wire{schema}",
        known,
        namespace=unknown,
        kw_only=True,
        forbid_unknown_fields=True,
        gc=False,
    )


_EMPTY: Final = msgspec.Raw(b"{}")
_STRUCTS: Final = {schema: wire_struct(schema, names) for schema, names in _SCHEMAS.items()}
_DECODERS: Final = [msgspec.json.Decoder(_STRUCTS[schema]).decode for schema in (*_SCHEMAS,)[::-1]]


def decode(body: bytes) -> Any:  # noqa: ANN401 - a Struct of ``wire_struct``
    """A message body as the Struct of its schema, which has an event's attributes.

    Left to the caller are the id, instants and dimensions, which are texts of JSON here, and NUL.

    Raises:
        ValueError: It is no such message.
        RecursionError: It is nested too deeply.
    """
    for each in _DECODERS[:-1]:
        try:
            return each(body)
        except msgspec.ValidationError:
            continue
    return _DECODERS[-1](body)


def as_decoded(event: UsageEvent) -> Any:  # noqa: ANN401 - as above
    """An event with the attributes that ``decode`` gives, instants left as they are."""
    dimensions = msgspec.Raw(orjson.dumps(event.dimensions, option=orjson.OPT_SORT_KEYS))
    values: dict[str, Any] = {name: getattr(event, name) for name in FIELDS}
    values |= {"id": str(event.id), "outcome": event.outcome.value, "dimensions": dimensions}
    return _STRUCTS[SCHEMA](schema=SCHEMA, **values)


def from_wire(body: bytes) -> UsageEvent:
    """The event of a message body. Checks what can be checked without asking anybody.

    Raises:
        InvalidEvent: With the reason under which the message is to be kept.
    """
    wire, schema = _object(body)
    _check_names(wire, _SCHEMAS[schema])
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


def _check_names(wire: dict[str, Any], known: frozenset[str]) -> None:
    for name in wire.keys() - known:
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


def _object(body: bytes) -> tuple[dict[str, Any], int]:
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
    if type(schema) is not int or schema not in _SCHEMAS:
        known = ", ".join(map(str, _SCHEMAS))
        raise InvalidEvent(DeadReason.UNKNOWN_SCHEMA, f"schema={schema!r:.80}; known: {known}")
    return wire, schema


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
