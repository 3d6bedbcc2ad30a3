"""Reads messages: each becomes a row of the log or a dead letter with its reason. Pure.

One pass takes what a publisher writes: decoded, checked and encoded for COPY and for its hash.
Whatever that pass refuses is read again by ``billing.core.usage_event_json.from_wire``, which finds
the reason, or takes the event after all; both ways give the same row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec
import orjson

from billing.core.clock import EPOCH, format_instant, to_ms
from billing.core.errors import InvalidValue
from billing.core.event_ids import low_bits
from billing.core.row_hash import Unlogged, unlogged_of_event
from billing.core.usage_event import (
    MAX_BODY_BYTES,
    DeadReason,
    InvalidEvent,
    Outcome,
    UsageEvent,
    check_dimensions,
    fingerprint_of,
)
from billing.core.usage_event_json import as_decoded, decode, from_wire
from billing.transport.message_batch import MAX_MESSAGE_BYTES, MAX_PARTS, parts_in
from billing.usage_log.copy_fields import Labels, row_of
from billing.usage_log.distinct_subjects import HOUR_MS, SubjectGroup, SubjectIds, month_number

_SHOWN: Final = 200
_MOST_CACHED_BYTES: Final = 16_777_216
_MOST_HOURS: Final = 10_000
_MILLISECOND: Final = timedelta(milliseconds=1)
_DENIED: Final = Outcome.DENIED.value
_SUCCEEDED: Final = Outcome.SUCCEEDED.value
_NUL: Final = b"\\u0000"


@dataclass(frozen=True, slots=True)
class Dead:
    """A message that cannot be logged. The last three are what could be read of it, for listing."""

    reason: DeadReason
    detail: str
    body: bytes
    event_id: str | None = None
    customer: str | None = None
    task_id: str | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """What an event must keep to besides its own format."""

    max_age: timedelta
    max_ahead: timedelta
    currency: str


class Row(msgspec.Struct, frozen=True, gc=False):
    """A valid event as a batch needs it.

    Attributes:
        key: Its id in 16 bytes.
        event: Its fields, as of ``billing.core.usage_event_json.decode``.
        hour: The number of its UTC hour since 1970.
        fingerprint: 16 bytes that another telling of the same fact has too.
        subject: The id of the subject to count as distinct, and its group; None for denials and
            for failures that cost nothing.
        copied: The row as COPY takes it; None where a figure does not fit its column.
        unlogged: What its hash will be made of.
        body: The message it came in.
    """

    key: bytes
    event: Any
    hour: int
    fingerprint: bytes
    subject: tuple[bytes, SubjectGroup] | None
    copied: bytes | None
    unlogged: Unlogged
    body: bytes


class Limits(NamedTuple):
    """Milliseconds of the lowest and highest id at one instant, and the last ``finished_at``."""

    first_ms: int
    last_ms: int
    latest: datetime


class EventReader:
    """Reads message after message by the same rules. Several threads may.

    Args:
        rules: Ages and currency.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._labels = Labels()
        self._dimensions: dict[bytes, msgspec.Raw] = {}
        self._dimensions_bytes = 0
        self._months: dict[int, int] = {}
        self._subject_ids = SubjectIds()

    def read(self, bodies: Iterable[bytes], now: datetime) -> list[Row | Dead]:
        """The row of each message, or why there is none; customer and SKU are not looked at.

        Args:
            bodies: Events, as they came from the broker.
            now: The present instant.
        """
        limits = self.limits(now)
        return [self.quick(body, limits) or self.explain(body, now) for body in bodies]

    def limits(self, now: datetime) -> Limits:
        """The bounds of an instant, both ends included."""
        latest = now + self.rules.max_ahead
        first = now - self.rules.max_age - EPOCH
        return Limits(-(-first // _MILLISECOND), (latest - EPOCH) // _MILLISECOND, latest)

    def quick(self, body: bytes, limits: Limits) -> Row | None:
        """The row of a message; None where it has to be looked at closely."""
        if len(body) > MAX_BODY_BYTES or (b"\\" in body and _NUL in body):
            return None
        try:
            event = decode(body)
            identifier: str = event.id
            ms = int(identifier[:8] + identifier[9:13], 16)
            number = ms << 80 | low_bits(event.task_id, event.line)
            digits = f"{number:032x}"
            if not (
                # The id is canonical, of this task and line, and not too old nor in the future.
                f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
                == identifier
                and limits.first_ms <= ms <= limits.last_ms
                and event.currency == self.rules.currency
                and not (event.amount_microcredits and event.outcome == _DENIED)
            ):
                return None
            if event.started_at is not None:
                event.started_at = _instant(event.started_at)
            if event.finished_at is not None:
                event.finished_at = _instant(event.finished_at)
                if event.finished_at > limits.latest:
                    return None
            event.dimensions = self._canonical(bytes(event.dimensions))
            return self._row(event, number.to_bytes(16, "big"), ms, body)
        except (ValueError, InvalidValue, OverflowError, RecursionError):
            return None

    def explain(self, body: bytes, now: datetime) -> Row | Dead:
        """The row of a message, or the reason why it cannot have one.

        Args:
            body: An event, as it came from the broker.
            now: The present instant.
        """
        try:
            _check_size(body)
            event = from_wire(body)
            _check(event, self.rules, now)
            return self._row(as_decoded(event), event.id.bytes, to_ms(event.metered_at), body)
        except InvalidEvent as error:
            return dead(error.reason, error.detail, body)
        except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
            # JSON can say things that no text or instant of ours can hold, a lone surrogate for
            # one. One such message must not hold up the queue.
            return dead(DeadReason.INVALID_FIELD, f"{type(error).__name__}: {error}", body)

    def _row(self, event: Any, key: bytes, ms: int, body: bytes) -> Row:  # noqa: ANN401 - as decoded
        fingerprint = fingerprint_of(event)
        hour = ms // HOUR_MS
        return Row(
            key,
            event,
            hour,
            fingerprint,
            self._subject(event, hour),
            row_of(event, key, fingerprint, self._labels),
            unlogged_of_event(event, fingerprint),
            body,
        )

    def _subject(self, event: Any, hour: int) -> tuple[bytes, SubjectGroup] | None:  # noqa: ANN401 - as above
        if event.subject is None:
            return None
        if not event.amount_microcredits and event.outcome != _SUCCEEDED:
            return None
        month = self._months.get(hour)
        if month is None:
            if len(self._months) > _MOST_HOURS:
                self._months.clear()
            month = self._months[hour] = month_number(hour)
        group = (event.customer, event.sku, month)
        return self._subject_ids.id_of(*group, event.subject), group

    def _canonical(self, dimensions: bytes) -> msgspec.Raw:
        """The one JSON text of dimensions, from any text of them.

        Raises:
            ValueError: They are no JSON.
            InvalidValue: They are not at most 20 texts by name.
        """
        found = self._dimensions.get(dimensions)
        if found is None:
            checked = check_dimensions(orjson.loads(dimensions))
            canonical = orjson.dumps(checked, option=orjson.OPT_SORT_KEYS)
            found = msgspec.Raw(canonical)
            self._dimensions_bytes += len(dimensions) + len(canonical)
            if self._dimensions_bytes > _MOST_CACHED_BYTES:
                self._dimensions.clear()
                self._dimensions_bytes = 0
            self._dimensions[dimensions] = found
        return found


def unknown_name(row: Row, *, customers: set[str], skus: set[str]) -> Dead | None:
    """The dead letter of an event whose customer or SKU nobody added; None where both are known."""
    event = row.event
    if event.customer not in customers:
        detail = f"customer={event.customer!r:.80}; add it, then replay"
        return dead(DeadReason.UNKNOWN_CUSTOMER, detail, row.body)
    if event.sku not in skus:
        detail = f"sku={event.sku!r:.80}; add it, then replay"
        return dead(DeadReason.UNKNOWN_SKU, detail, row.body)
    return None


def dead(reason: DeadReason, detail: str, body: bytes) -> Dead:
    """A dead letter, with what can be read of the message."""
    names = _peek(body)
    return Dead(
        reason, storable(detail), body, names.get("id"), names.get("customer"), names.get("task_id")
    )


def storable(text: str) -> str:
    """``text`` as PostgreSQL can hold it: valid UTF-8, no NUL."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")


def _instant(text: str) -> datetime:
    instant = datetime.fromisoformat(text)
    # Of another offset it may be one that is out of reach in UTC.
    if instant.tzinfo is not UTC:
        raise ValueError(text)
    return instant


def _check_size(body: bytes) -> None:
    """Refuse a sequence that ``unpacked`` has left whole because it is beyond its bounds."""
    parts = parts_in(body)
    if parts > 1 and len(body) > MAX_MESSAGE_BYTES:
        detail = f"{len(body)} bytes in one message of several; at most {MAX_MESSAGE_BYTES}"
        raise InvalidEvent(DeadReason.TOO_LARGE, detail)
    if parts > MAX_PARTS:
        detail = f"{parts} events in one message; at most {MAX_PARTS}"
        raise InvalidEvent(DeadReason.TOO_LARGE, detail)


def _check(event: UsageEvent, rules: Rules, now: datetime) -> None:
    if event.outcome is Outcome.DENIED and event.amount_microcredits:
        raise InvalidEvent(
            DeadReason.INVALID_FIELD,
            f"amount_microcredits={event.amount_microcredits}; a denied task costs nothing",
        )
    if event.currency != rules.currency:
        raise InvalidEvent(
            DeadReason.WRONG_CURRENCY, f"currency={event.currency}; this log is in {rules.currency}"
        )
    times = {"metered_at": event.metered_at, "finished_at": event.finished_at}
    for name, instant in times.items():
        if instant is not None and instant > now + rules.max_ahead:
            raise InvalidEvent(
                DeadReason.IN_THE_FUTURE, f"{name}={format_instant(instant)}; {_at(now)}"
            )
    if event.metered_at < now - rules.max_age:
        raise InvalidEvent(
            DeadReason.TOO_OLD,
            f"metered_at={format_instant(event.metered_at)}; at most {rules.max_age.days} days; "
            f"{_at(now)}",
        )


def _at(now: datetime) -> str:
    return f"read at {format_instant(now)}"


def _peek(body: bytes) -> dict[str, str]:
    if len(body) > MAX_BODY_BYTES:
        return {}
    try:
        wire = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if not isinstance(wire, dict):
        return {}
    return {
        name: storable(value)[:_SHOWN]
        for name in ("id", "customer", "task_id")
        if isinstance(value := wire.get(name), str)
    }
