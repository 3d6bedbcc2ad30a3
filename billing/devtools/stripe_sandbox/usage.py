"""Meter events: taken at once, judged later, read back as summaries later still."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from billing.devtools.stripe_sandbox import errors
from billing.devtools.stripe_sandbox.clock import MovableClock
from billing.devtools.stripe_sandbox.customers import Customers
from billing.devtools.stripe_sandbox.errors import JsonObject
from billing.devtools.stripe_sandbox.events import rfc3339
from billing.devtools.stripe_sandbox.ids import Ids
from billing.devtools.stripe_sandbox.meters import WINDOW_SECONDS, Meters
from billing.devtools.stripe_sandbox.params import plain_decimal
from billing.devtools.stripe_sandbox.reports import ErrorReports, Rejection
from billing.devtools.stripe_sandbox.summaries import Counted, Figures

PAST_SECONDS: Final = 35 * 86_400
AHEAD_SECONDS: Final = 5 * 60
CANCEL_SECONDS: Final = 24 * 3_600
SIGNIFICANT_DIGITS: Final = 15


@dataclass(slots=True, kw_only=True)
class Taken:
    """A meter event as it came; ``state``: pending, counted, cancelled or the code of its error."""

    number: int
    identifier: str
    event_name: str
    payload: Mapping[str, str]
    timestamp: int
    received: float
    state: str = "pending"


class MeterEvents:
    """Everything reported to the meters.

    ``judgement_seconds`` is how long after its arrival an event is judged, ``summary_seconds`` how
    long after it is seen in summaries, ``identifier_seconds`` how long an identifier is remembered
    (Stripe promises "at least 24 hours").
    """

    def __init__(
        self,
        clock: MovableClock,
        ids: Ids,
        meters: Meters,
        customers: Customers,
        reports: ErrorReports,
    ) -> None:
        self._clock = clock
        self._ids = ids
        self._meters = meters
        self._customers = customers
        self._reports = reports
        self._remembered: OrderedDict[str, Taken] = OrderedDict()
        self._unjudged: deque[Taken] = deque()
        self.taken: list[Taken] = []
        self.figures = Figures()
        self.judgement_seconds = 0.0
        self.summary_seconds = 0.0
        self.identifier_seconds = 24 * 3_600.0

    def take(self, params: dict[str, Any], *, v2: bool = False) -> Taken:
        """Take an event without judging it.

        Raises:
            Refusal: What Stripe refuses at once: its time, too many digits, a known identifier.
        """
        received = self._clock.seconds()
        timestamp: int = params.get("timestamp", int(received))
        self._check_time(timestamp, received)
        self._check_digits(params)
        identifier: str = params.get("identifier") or self._ids.new("meter_event")
        self._forget(received)
        if identifier in self._remembered:
            raise errors.duplicate_identifier(identifier, v2=v2)
        taken = Taken(
            number=len(self.taken) + 1,
            identifier=identifier,
            event_name=params["event_name"],
            payload=params["payload"],
            timestamp=timestamp,
            received=received,
        )
        self._remembered[identifier] = taken
        self.taken.append(taken)
        self._unjudged.append(taken)
        return taken

    def cancel(self, event_name: str, identifier: str) -> None:
        """Take an event back that came in the last 24 hours.

        Raises:
            Refusal: There is none such.
        """
        found = self._remembered.get(identifier)
        late = found is not None and self._clock.seconds() - found.received > CANCEL_SECONDS
        if found is None or late or found.event_name != event_name or found.state == "cancelled":
            raise errors.failed(
                f"No meter event with identifier {identifier} was received for {event_name} in "
                "the last 24 hours.",
                code="resource_missing",
                param="cancel[identifier]",
            )
        if found.state == "counted":
            self.figures.drop(found.number)
        found.state = "cancelled"

    def judge(self) -> None:
        """Judge what is due: count it, or report its error."""
        due = self._clock.seconds() - self.judgement_seconds
        rejections: list[Rejection] = []
        while self._unjudged and self._unjudged[0].received <= due:
            taken = self._unjudged.popleft()
            rejection = self._judged(taken) if taken.state == "pending" else None
            if rejection is not None:
                rejections.append(rejection)
        self._reports.report(rejections)

    def visible_before(self) -> float:
        """Events that came before or at this second are seen in summaries."""
        return self._clock.seconds() - self.summary_seconds

    def _judged(self, taken: Taken) -> Rejection | None:
        meter = self._meters.listening_to(taken.event_name)
        problem = self._problem(taken, meter)
        if problem is not None:
            taken.state = problem[0]
            return Rejection(
                meter=meter["id"] if meter else None,
                code=problem[0],
                message=problem[1],
                identifier=taken.identifier,
                received=taken.received,
            )
        assert meter is not None  # noqa: S101 - a missing meter is a problem
        taken.state = "counted"
        value = plain_decimal(taken.payload.get(meter["value_settings"]["event_payload_key"], ""))
        self.figures.add(
            Counted(
                number=taken.number,
                meter=meter["id"],
                customer=taken.payload[meter["customer_mapping"]["event_payload_key"]],
                timestamp=taken.timestamp,
                received=taken.received,
                value=value if value is not None else Decimal(1),
            ),
            window_seconds=WINDOW_SECONDS.get(meter["event_time_window"]),
        )
        return None

    def _problem(self, taken: Taken, meter: JsonObject | None) -> tuple[str, str] | None:
        if meter is None:
            return "no_meter", f"No meter found with event name {taken.event_name}."
        if meter["status"] == "inactive":
            return "archived_meter", f"The meter {meter['id']} is archived."
        return self._payload_problem(taken, meter)

    def _payload_problem(self, taken: Taken, meter: JsonObject) -> tuple[str, str] | None:
        key = meter["customer_mapping"]["event_payload_key"]
        customer = taken.payload.get(key)
        if not customer:
            return "meter_event_no_customer_defined", f"The payload has no key {key}."
        if not self._customers.lives(customer):
            return "meter_event_customer_not_found", f"No such customer: '{customer}'"
        if meter["default_aggregation"]["formula"] == "count":
            return None
        key = meter["value_settings"]["event_payload_key"]
        if key not in taken.payload:
            return "meter_event_value_not_found", f"The payload has no key {key}."
        if plain_decimal(taken.payload[key]) is None:
            return "meter_event_invalid_value", f"The value {taken.payload[key]} is not a number."
        return None

    def _check_time(self, timestamp: int, received: float) -> None:
        oldest = int(received) - PAST_SECONDS
        if timestamp < oldest:
            raise errors.parameter(
                "The event timestamp cannot be more than 35 days in past. Expected a timestamp "
                f"greater than or equal to {oldest}",
                "timestamp",
            )
        newest = int(received) + AHEAD_SECONDS
        if timestamp > newest:
            raise errors.parameter(
                "The event timestamp cannot be more than 5 minutes in the future. Expected a "
                f"timestamp less than or equal to {newest}",
                "timestamp",
            )

    def _check_digits(self, params: dict[str, Any]) -> None:
        meter = self._meters.listening_to(params["event_name"])
        key = meter["value_settings"]["event_payload_key"] if meter else "value"
        number = plain_decimal(params["payload"].get(key, ""))
        if number is not None and significant_digits(number) > SIGNIFICANT_DIGITS:
            raise errors.parameter(
                f"The value of a meter event can have at most {SIGNIFICANT_DIGITS} significant "
                "digits.",
                f"payload[{key}]",
            )

    def _forget(self, now: float) -> None:
        while self._remembered:
            oldest = next(iter(self._remembered.values()))
            if now - oldest.received < self.identifier_seconds:
                return
            del self._remembered[oldest.identifier]


def significant_digits(number: Decimal) -> int:
    """How many digits ``number`` needs, without zeros in front and, in a fraction, behind."""
    digits = number.as_tuple()
    text = "".join(map(str, digits.digits)).lstrip("0")
    if int(digits.exponent) < 0:
        text = text.rstrip("0") or "0"
    return max(1, len(text))


def as_v1(taken: Taken) -> JsonObject:
    """The answer to ``POST /v1/billing/meter_events``; it has no id."""
    return {
        "object": "billing.meter_event",
        "created": int(taken.received),
        "event_name": taken.event_name,
        "identifier": taken.identifier,
        "livemode": False,
        "payload": dict(taken.payload),
        "timestamp": taken.timestamp,
    }


def as_v2(taken: Taken) -> JsonObject:
    """The answer to ``POST /v2/billing/meter_events``."""
    return {
        **as_v1(taken),
        "object": "v2.billing.meter_event",
        "created": rfc3339(taken.received),
        "timestamp": rfc3339(taken.timestamp),
    }
