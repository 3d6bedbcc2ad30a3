"""What may be logged, decided before the database is asked to log it. Pure but for the names known.

Every message ends up either as a ``Candidate`` or as ``Dead`` with the reason it is kept under.
``screen`` says which; ``Screener`` says the same of many messages, and of ordinary ones sooner.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta

import orjson

from billing.core.clock import format_instant
from billing.core.usage_event import MAX_BODY_BYTES, DeadReason, InvalidEvent, Outcome, UsageEvent
from billing.core.usage_event_json import from_wire
from billing.usage_log import quick
from billing.usage_log.candidate import Candidate, candidate_of

_SHOWN = 200


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


def screen(body: bytes, *, rules: Rules, now: datetime) -> Candidate | Dead:
    """The event of a message, or why it cannot be one; customer and SKU are not looked at.

    Args:
        body: As it came from the broker.
        rules: Ages and currency.
        now: The present instant.
    """
    try:
        event = from_wire(body)
        candidate = candidate_of(event, body)
        _check(event, rules, now)
    except InvalidEvent as error:
        return dead(error.reason, error.detail, body)
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        # JSON can say things that no text or instant of ours can hold, a lone surrogate for one.
        # One such message must not hold up the queue.
        return dead(DeadReason.INVALID_FIELD, f"{type(error).__name__}: {error}", body)
    return candidate


class Screener:
    """Screens message after message by the same rules.

    Args:
        rules: Ages and currency.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._texts = quick.Texts()

    def screen(self, bodies: Iterable[bytes], now: datetime) -> list[Candidate | Dead]:
        """What ``screen`` says of each.

        Args:
            bodies: As they came from the broker.
            now: The present instant.
        """
        rules, texts = self._rules, self._texts
        limits = quick.limits_between(now - rules.max_age, now + rules.max_ahead, rules.currency)
        return [
            quick.read(body, texts, limits) or screen(body, rules=rules, now=now) for body in bodies
        ]


def unknown_name(
    candidate: Candidate, *, customers: AbstractSet[str], skus: AbstractSet[str]
) -> Dead | None:
    """The dead letter of an event whose customer or SKU nobody added; None where both are known."""
    if candidate.customer not in customers:
        detail = f"customer={candidate.customer!r:.80}; add it, then replay"
        return dead(DeadReason.UNKNOWN_CUSTOMER, detail, candidate.body)
    if candidate.sku not in skus:
        detail = f"sku={candidate.sku!r:.80}; add it, then replay"
        return dead(DeadReason.UNKNOWN_SKU, detail, candidate.body)
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
