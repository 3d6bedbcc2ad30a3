"""Any order of events, on a real outbox: nothing is lost or doubled, or sent to what is sealed."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from reporting_support import (
    CUSTOMERS,
    THIS_HOUR,
    Aged,
    Container,
    answer_lost,
    answering,
    coarse,
    metered,
)

from billing.providers.port import ProviderCause

HOUR = timedelta(hours=1)
SKU = "page-capture"
STEPS = 80
FAULTS = [
    answer_lost,
    answering(ProviderCause.TIMED_OUT),
    answering(ProviderCause.KEY_REFUSED),
    answering(ProviderCause.METER_MISSING),
]


class Anything:
    """Does one thing after another, and knows what was sealed when."""

    def __init__(self, container: Container, seed: int) -> None:
        self.container = container
        self.dice = random.Random(seed)
        container.ledger = Aged(container.ledger.inner, container.clock, timedelta(days=3))
        container.former = (container.ledger, container.file)
        container.metered = self.dice.choice([metered, coarse(0), coarse(3)])
        self.provider = container.ledger
        self.sealed: dict[str, datetime] = {}
        self.invoices = 0

    @property
    def under_way(self) -> datetime:
        return self.container.clock.now().replace(minute=0)

    def use(self) -> None:
        ago = self.dice.choice([0, 0, 1, 1, 2, 5, 30, 100])
        amount = self.dice.choice([1, 7, 400_000, 1_000_000, 2_345_678])
        hour = max(self.under_way - ago * HOUR, THIS_HOUR - 100 * HOUR)
        self.container.use(amount, hour, customer=self.dice.choice(CUSTOMERS))

    def later(self) -> None:
        self.container.later(hours=self.dice.choice([1, 1, 1, 7, 25]))

    def change(self) -> None:
        others = {id(self.container.ledger): self.container.file}
        self.provider = others.get(id(self.provider), self.container.ledger)

    def run(self) -> None:
        self.provider.faults.extend(self.dice.choices(FAULTS, k=self.dice.randrange(3)))
        former = [one for one in self.container.former if one is not self.provider]
        self.container.former, before = tuple(former), self.container.former
        self.container.advance(self.provider)
        self.container.former = before

    def seal(self) -> None:
        customer = self.dice.choice(CUSTOMERS)
        start = self.sealed.get(customer, THIS_HOUR - 101 * HOUR)
        end = self.under_way - self.dice.randrange(3) * HOUR
        if end <= start or self.provider.name != "ledger":
            return
        meter = self.container.metered(SKU).meter.name
        figures = 0
        day = start.date()
        while day <= end.date():
            read = self.provider.inner.read_back(customer, meter, day)
            figures += sum(value for hour, value in read.items() if start <= hour < end)
            day += timedelta(days=1)
        self.invoices += 1
        billed = max(figures + self.dice.choice([0, 0, 0, -3, 2]), 0)
        self.container.seal(
            billed, start=start, end=end, invoice=f"in_{self.invoices}", customer=customer
        )
        self.sealed[customer] = end
        self.container.ledger.seen.clear()
        self.container.file.seen.clear()

    def decide(self) -> None:
        """What reading back does to doubtful reports."""
        for row in self.container.reports.list(limit=1000):
            if row.doubtful and row.state == "parked":
                at = {"ledger": self.container.ledger, "file": self.container.file}[row.provider]
                read = at.inner.read_back(row.customer_ref, row.meter, row.hour.date())
                arrived = read.get(row.hour) == row.value
                now = self.container.clock.now()
                assert self.container.reports.lift_hold(row.id, arrived=arrived, now=now)

    def check(self) -> None:
        for customer in CUSTOMERS:
            sums = {(s.customer, s.sku) for s in self.container.sums_ever()}
            if (customer, SKU) in sums:
                self.container.books(customer)
        for provider in (self.container.ledger, self.container.file):
            for report in provider.seen:
                end = self.sealed.get(report.customer_ref)
                assert end is None or report.hour >= end, report

    def left_alone(self) -> None:
        for _ in range(7):
            self.provider.faults.clear()
            self.decide()
            self.run_well()
            self.container.later(hours=5)

    def run_well(self) -> None:
        for row in self.container.reports.list(cause=ProviderCause.METER_MISSING.value):
            self.container.reports.retry(row.id, now=self.container.clock.now())
        self.container.former, before = (), self.container.former
        self.container.former = tuple(one for one in before if one is not self.provider)
        for provider in before:
            provider.faults.clear()
        self.container.advance(self.provider)
        self.container.former = before


@pytest.mark.parametrize("seed", [0, 1, 6, 7])
def test_any_order_of_events_comes_to_the_log(container: Container, seed: int) -> None:
    anything = Anything(container, seed)
    steps: list[Callable[[], None]] = [
        anything.use, anything.use, anything.use, anything.run, anything.run, anything.later,
        anything.later, anything.seal, anything.seal, anything.decide, anything.change,
    ]  # fmt: skip
    for _ in range(STEPS):
        anything.dice.choice(steps)()
        anything.check()
    anything.left_alone()
    anything.check()
    unit = 10 ** (6 - container.metered(SKU).decimals)
    for customer in CUSTOMERS:
        books = container.books(customer)
        assert (books.open, books.unclaimed, books.carried) == (0, 0, 0)
        assert books.logged == books.accepted + books.parked
        assert books.parked < unit
    container.assert_figures_are_exact(container.metered(SKU).decimals)
