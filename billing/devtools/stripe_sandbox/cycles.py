"""Billing cycles: what subscriptions with metered prices do to usage, without the subscriptions.

At the end of a cycle there is a draft with a line per meter. It becomes final by itself after a
grace; what a meter has taken for the period until then is on it, and what comes later is on none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Final

from billing.devtools.stripe_sandbox import errors
from billing.devtools.stripe_sandbox.clock import MovableClock
from billing.devtools.stripe_sandbox.customers import Customers
from billing.devtools.stripe_sandbox.errors import JsonObject
from billing.devtools.stripe_sandbox.ids import Ids
from billing.devtools.stripe_sandbox.invoice_objects import cycle_invoice, metered_line
from billing.devtools.stripe_sandbox.invoices import Invoices
from billing.devtools.stripe_sandbox.meters import WINDOW_SECONDS, Meters
from billing.devtools.stripe_sandbox.prices import Prices
from billing.devtools.stripe_sandbox.summaries import aggregate
from billing.devtools.stripe_sandbox.usage import MeterEvents

_PLACES: Final = 12
"""The most decimals of a quantity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycle:
    """A cycle to end: ``[period_start, period_end)`` in unix seconds.

    ``meters`` are event names; None stands for every meter that has usage in the period.
    """

    customer: str
    period_start: int
    period_end: int
    meters: Sequence[str] | None = None
    unit_amount_decimal: str = "0.0001"
    grace_seconds: int = 3_600
    currency: str = "usd"


class Cycles:
    """Ends billing cycles. A customer has one subscription, with an item per meter."""

    def __init__(
        self,
        clock: MovableClock,
        ids: Ids,
        customers: Customers,
        meters: Meters,
        usage: MeterEvents,
        prices: Prices,
        invoices: Invoices,
    ) -> None:
        self._clock = clock
        self._ids = ids
        self._customers = customers
        self._meters = meters
        self._usage = usage
        self._prices = prices
        self._invoices = invoices
        self._subscriptions: dict[str, str] = {}
        self._items: dict[tuple[str, str], str] = {}

    def end(self, cycle: Cycle) -> JsonObject:
        """End a cycle: the draft, with what the meters have now.

        Raises:
            Refusal: No such customer or meter, a deleted customer, or an empty period.
        """
        customer = self._customers.given(cycle.customer)
        if cycle.period_end <= cycle.period_start:
            raise errors.parameter("period_end must be after period_start.", "period_end")
        named = [self._named(name) for name in cycle.meters or ()]
        invoice = cycle_invoice(
            self._ids.new("in"),
            customer,
            subscription=self._subscription(cycle.customer),
            currency=cycle.currency,
            period=(cycle.period_start, cycle.period_end),
            created=int(self._clock.seconds()),
            grace_seconds=cycle.grace_seconds,
        )
        line_ids: defaultdict[str, str] = defaultdict(lambda: self._ids.new("il"))

        def lines(draft: JsonObject) -> list[JsonObject]:
            meters = self._with_usage(cycle) if cycle.meters is None else named
            return [self._line(line_ids[meter["id"]], draft, cycle, meter) for meter in meters]

        self._invoices.add_cycle(invoice, lines)
        return invoice

    def billed(self, meter: JsonObject, customer: str, start: int, end: int) -> Decimal | None:
        """What a period's invoice bills of a meter, by what it has by now; None without usage.

        What comes to less than nothing bills as 0.
        """
        window = WINDOW_SECONDS.get(meter["event_time_window"])
        first, last = whole_windows(start, end, window)
        counted = self._usage.figures.between(
            meter["id"], customer, first, last, arrived_by=self._clock.seconds()
        )
        if not counted:
            return None
        total = max(Decimal(0), aggregate(meter["default_aggregation"]["formula"], counted))
        too_fine = -int(total.as_tuple().exponent) > _PLACES
        return total.quantize(Decimal(1).scaleb(-_PLACES), ROUND_HALF_UP) if too_fine else total

    def _line(self, line_id: str, draft: JsonObject, cycle: Cycle, meter: JsonObject) -> JsonObject:
        quantity = self.billed(meter, cycle.customer, cycle.period_start, cycle.period_end)
        item = (cycle.customer, meter["id"])
        if item not in self._items:
            self._items[item] = self._ids.new("si")
        return metered_line(
            line_id,
            draft,
            item=self._items[item],
            price=self._prices.metered(meter["id"], cycle.unit_amount_decimal, cycle.currency),
            meter=meter,
            quantity=quantity or Decimal(0),
        )

    def _with_usage(self, cycle: Cycle) -> Iterable[JsonObject]:
        for meter in reversed(self._meters.newest(None)):
            billed = self.billed(meter, cycle.customer, cycle.period_start, cycle.period_end)
            if billed is not None:
                yield meter

    def _named(self, event_name: str) -> JsonObject:
        meter = self._meters.listening_to(event_name)
        if meter is None:
            raise errors.parameter(f"No meter found with event name {event_name}.", "meters")
        return meter

    def _subscription(self, customer: str) -> str:
        if customer not in self._subscriptions:
            self._subscriptions[customer] = self._ids.new("sub")
        return self._subscriptions[customer]


def whole_windows(start: int, end: int, window_seconds: int | None) -> tuple[int, int]:
    """The interval that a cycle bills of a meter with windows of this length, or without any.

    A window belongs to the cycle in which it ends: one that straddles an end is billed whole by
    the next invoice. Pure.
    """
    if window_seconds is None:
        return start, end
    return start // window_seconds * window_seconds, end // window_seconds * window_seconds
