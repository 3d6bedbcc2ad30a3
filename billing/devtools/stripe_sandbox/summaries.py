"""Event summaries: what the meters have counted, by customer and interval."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from billing.devtools.stripe_sandbox import errors
from billing.devtools.stripe_sandbox.errors import JsonObject
from billing.devtools.stripe_sandbox.meters import WINDOW_SECONDS

MINUTE: Final = 60
HOUR: Final = 3_600


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """One counted event; ``number`` is its place in the order of arrival."""

    number: int
    meter: str
    customer: str
    timestamp: int
    received: float
    value: Decimal


class Figures:
    """Counted events by meter, customer and hour."""

    def __init__(self) -> None:
        self._hours: defaultdict[tuple[str, str], defaultdict[int, list[Counted]]] = defaultdict(
            lambda: defaultdict(list)
        )
        self._windows: dict[str, int | None] = {}
        self._dropped: set[int] = set()

    def add(self, counted: Counted, *, window_seconds: int | None) -> None:
        """Count an event of a meter with windows of this length, or without any."""
        self._windows[counted.meter] = window_seconds
        hour = counted.timestamp // HOUR * HOUR
        self._hours[counted.meter, counted.customer][hour].append(counted)

    def drop(self, number: int) -> None:
        """Count an event no longer."""
        self._dropped.add(number)

    def between(
        self, meter: str, customer: str, start: int, end: int, *, arrived_by: float
    ) -> list[Counted]:
        """The events that count in [start, end), of those that had arrived, by arrival.

        In a window only the one that arrived last counts, whatever the order of their timestamps.
        """
        window = self._windows.get(meter)
        around = (start, end)
        if window is not None:
            around = start // window * window, -(-end // window) * window
        found = [
            counted
            for counted in self._within(meter, customer, *around)
            if counted.received <= arrived_by and counted.number not in self._dropped
        ]
        found.sort(key=lambda counted: counted.number)
        if window is not None:
            last = {counted.timestamp // window: counted for counted in found}
            found = sorted(last.values(), key=lambda counted: counted.number)
        return [counted for counted in found if start <= counted.timestamp < end]

    def _within(self, meter: str, customer: str, start: int, end: int) -> Iterator[Counted]:
        hours = self._hours.get((meter, customer))
        for hour, events in hours.items() if hours else ():
            if start - HOUR < hour < end:
                yield from (one for one in events if start <= one.timestamp < end)


def check_interval(start: int, end: int, grouping: str | None) -> None:
    """Refuse an interval that is not aligned.

    Raises:
        Refusal: Not on a minute; with a grouping, not on its hour or UTC day; or empty.
    """
    unit = WINDOW_SECONDS[grouping] if grouping else MINUTE
    name = {None: "minute", "hour": "hour", "day": "UTC day"}[grouping]
    for param, instant in (("start_time", start), ("end_time", end)):
        if instant % unit:
            raise errors.parameter(f"{param} must be aligned with {name} boundaries.", param)
    if end <= start:
        raise errors.parameter("end_time must be after start_time.", "end_time")


def summarise(
    meter: JsonObject,
    customer: str,
    counted: Iterable[Counted],
    *,
    start: int,
    end: int,
    grouping: str | None,
) -> list[JsonObject]:
    """The summaries of an interval, newest first. Where nothing was counted there is none."""
    length = WINDOW_SECONDS[grouping] if grouping else end - start
    groups: defaultdict[int, list[Counted]] = defaultdict(list)
    for one in counted:
        groups[start + (one.timestamp - start) // length * length].append(one)
    formula = meter["default_aggregation"]["formula"]
    return [
        {
            "id": _summary_id(meter["id"], customer, begin, begin + length),
            "object": "billing.meter_event_summary",
            "aggregated_value": _number(aggregate(formula, groups[begin])),
            "end_time": begin + length,
            "livemode": False,
            "meter": meter["id"],
            "start_time": begin,
        }
        for begin in sorted(groups, reverse=True)
    ]


def aggregate(formula: str, group: Sequence[Counted]) -> Decimal:
    """What the counted events come to by a meter's formula; 0 where there are none."""
    if formula == "count":
        return Decimal(len(group))
    if formula == "last" and group:
        return max(group, key=lambda one: (one.timestamp, one.number)).value
    return sum((one.value for one in group), Decimal(0))


def _number(value: Decimal) -> int | float:
    # Stripe's description says "number", which is a double: exact to 15 digits and no further.
    double = float(value)
    return int(double) if double.is_integer() else double


def _summary_id(*parts: str | int) -> str:
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()
    return f"mtrusg_test_{digest[:24]}"
