"""The quick way to a candidate, for events as our own publishers write them.

Such a message has every field, in the order of its names, and nothing in it is doubtful. What is
accepted here is accepted by ``billing.usage_log.screen.screen`` with the same result; anything
else, and whatever is wrong, is left to that one, which finds the reason.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import orjson

from billing.core.clock import EPOCH
from billing.core.event_ids import low_bits
from billing.core.row_hash import FORM, joined
from billing.core.usage_event import (
    FIELDS,
    MAX_BODY_BYTES,
    MAX_DIMENSIONS,
    MAX_TEXT,
    SCHEMA,
    Outcome,
    fingerprint_of,
)
from billing.usage_log import rows
from billing.usage_log.candidate import HOUR_MS, Candidate

_NAMES: Final = tuple(sorted((*FIELDS, "schema")))
_FIGURE_END: Final = 2**53
_OUTCOMES: Final = frozenset(outcome.value for outcome in Outcome)
_DENIED: Final = Outcome.DENIED.value
_MOST_TEXTS: Final = 100_000
_MILLISECOND: Final = timedelta(milliseconds=1)
_NULL: Final = rows.NULL
_loads = orjson.loads
_figures = rows.FIGURES.pack
_pack_instant = rows.INSTANT.pack
_width = rows.WIDTH.pack


class Limits(NamedTuple):
    """What an event must keep to, at one instant.

    ``first_ms`` and ``last_ms`` are the milliseconds of the lowest and the highest id, ``latest``
    the last ``finished_at``.
    """

    first_ms: int
    last_ms: int
    latest: datetime
    currency: str


def limits_between(oldest: datetime, latest: datetime, currency: str) -> Limits:
    """Limits, both instants included."""
    first, last = (instant - EPOCH for instant in (oldest, latest))
    return Limits(-(-first // _MILLISECOND), last // _MILLISECOND, latest, currency)


class Texts(dict[str, bytes]):
    """Fields of texts that come again and again: customers, SKUs, lines, workers."""

    def __missing__(self, value: str) -> bytes:
        """The field of a new one.

        Raises:
            ValueError: It is no text that an event may have.
        """
        field = _text(value)
        if len(self) < _MOST_TEXTS:
            self[value] = field
        return field


def read(body: bytes, texts: Texts, limits: Limits) -> Candidate | None:
    """The candidate of a message; None where it has to be looked at closely.

    Args:
        body: As it came from the broker.
        texts: Kept from call to call.
        limits: Of the present instant.
    """
    if len(body) > MAX_BODY_BYTES:
        return None
    try:
        wire = _loads(body)
        return _candidate(wire, body, texts, limits) if tuple(wire) == _NAMES else None
    except (AttributeError, TypeError, ValueError, OverflowError):
        return None


def _candidate(wire: dict[str, Any], body: bytes, texts: Texts, limits: Limits) -> Candidate | None:
    (
        amount, attempt, cost, currency, customer, degraded, dimensions, finished, group, held,
        identifier, line, outcome, parent, quantity, epoch, reason, root, schema, shortfall, sku,
        started, subject, task, task_name, worker,
    ) = wire.values()  # fmt: skip
    ms = int(identifier[:8] + identifier[9:13], 16)
    number = ms << 80 | low_bits(task, line)
    digits = f"{number:032x}"
    if not (
        # The id is canonical, of this task and line, and not too old nor in the future.
        f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}" == identifier
        and limits.first_ms <= ms <= limits.last_ms
        and type(amount) is type(attempt) is type(cost) is type(held) is int
        and type(quantity) is type(epoch) is type(shortfall) is type(schema) is int
        # Of several integers or-ed together, none is below zero, and none reaches the end.
        and 0 <= amount | attempt | cost | held | quantity | epoch | shortfall < _FIGURE_END
        and attempt <= rows.MAX_ATTEMPT
        and schema == SCHEMA
        and type(degraded) is bool
        and currency == limits.currency
        and outcome in _OUTCOMES
        and not (amount and outcome == _DENIED)
        and type(dimensions) is dict
        and len(dimensions) <= MAX_DIMENSIONS
    ):
        return None
    for name, value in dimensions.items():
        if type(value) is not str or len(name) > MAX_TEXT or len(value) > MAX_TEXT:
            return None
        if "\0" in name or "\0" in value:
            return None
    key = number.to_bytes(16, "big")
    fingerprint = fingerprint_of(
        customer, sku, line, task, outcome, quantity, amount, cost, currency, subject, dimensions
    )
    of_task = _text(task)
    started_at = None if started is None else _instant(started, None)
    finished_at = None if finished is None else _instant(finished, limits.latest)
    row = b"".join(
        (
            rows.FIELDS,
            texts[customer],
            texts[sku],
            texts[line],
            texts[outcome],
            texts[reason],
            texts[currency],
            texts[task_name],
            texts[worker],
            _figures(
                16, key, 16, fingerprint, 8, quantity, 8, amount, 8, shortfall, 8, held,
                8, cost, 8, epoch, 4, attempt, 1, degraded,
            ),
            _NULL if started_at is None else _packed(started_at),
            _NULL if finished_at is None else _packed(finished_at),
            _NULL if subject is None else _text(subject),
            rows.jsonb(dimensions),
            of_task,
            _NULL if root is None else of_task if root == task else _text(root),
            _NULL if parent is None else _text(parent),
            _NULL if group is None else _text(group),
        )
    )  # fmt: skip
    # Their keys are in order: sorting finds nothing to do but in the dimensions.
    around = joined(
        {
            "amount_microcredits": amount, "attempt": attempt, "cost_micros": cost,
            "currency": currency, "customer_id": customer, "degraded": degraded,
            "dimensions": dimensions, "fingerprint": fingerprint.hex(), "finished_at": finished_at,
            "form": FORM, "group_id": group, "held_microcredits": held, "id": identifier,
            "line": line,
        },
        {
            "outcome": outcome, "parent_id": parent, "quantity": quantity, "quota_epoch": epoch,
            "reason": reason, "root_id": root, "shortfall_microcredits": shortfall, "sku_id": sku,
            "started_at": started_at, "subject": subject, "task_id": task, "task_name": task_name,
            "worker": worker,
        },
    )  # fmt: skip
    return Candidate(
        key, customer, sku, outcome, reason, ms // HOUR_MS, quantity, amount, shortfall, cost,
        epoch, subject, fingerprint, row, around, body,
    )  # fmt: skip


def _text(value: str) -> bytes:
    if type(value) is not str or len(value) > MAX_TEXT or "\0" in value:
        raise ValueError
    encoded = value.encode()
    return _width(len(encoded)) + encoded


def _instant(value: str, latest: datetime | None) -> datetime:
    instant = datetime.fromisoformat(value)
    # Of another offset it may be one that is out of reach in UTC.
    if instant.tzinfo is not UTC or (latest is not None and instant > latest):
        raise ValueError
    return instant


def _packed(instant: datetime) -> bytes:
    since = instant - rows.EPOCH
    return _pack_instant(
        8, since.days * rows.DAY + since.seconds * rows.SECOND + since.microseconds
    )
