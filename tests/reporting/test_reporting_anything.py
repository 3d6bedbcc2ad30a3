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
    System,
    answer_lost,
    answering,
    coarse,
    metered,
)

from billing.providers.port import Cause

HOUR = timedelta(hours=1)
SKU = "page-capture"
STEPS = 80
FAULTS = [
    answer_lost,
    answering(Cause.TIMED_OUT),
    answering(Cause.KEY_REFUSED),
    answering(Cause.METER_MISSING),
]


class Anything:
    """Does one thing after another, and knows what was sealed when."""

    def __init__(self, system: System, seed: int) -> None:
        self.system = system
        self.dice = random.Random(seed)
        system.ledger = Aged(system.ledger.inner, system.clock, timedelta(days=3))
        system.former = (system.ledger, system.file)
        system.metered = self.dice.choice([metered, coarse(0), coarse(3)])
        self.provider = system.ledger
        self.sealed: dict[str, datetime] = {}
        self.invoices = 0

    @property
    def under_way(self) -> datetime:
        return self.system.clock.now().replace(minute=0)

    def use(self) -> None:
        ago = self.dice.choice([0, 0, 1, 1, 2, 5, 30, 100])
        amount = self.dice.choice([1, 7, 400_000, 1_000_000, 2_345_678])
        hour = max(self.under_way - ago * HOUR, THIS_HOUR - 100 * HOUR)
        self.system.use(amount, hour, customer=self.dice.choice(CUSTOMERS))

    def later(self) -> None:
        self.system.later(hours=self.dice.choice([1, 1, 1, 7, 25]))

    def change(self) -> None:
        others = {id(self.system.ledger): self.system.file}
        self.provider = others.get(id(self.provider), self.system.ledger)

    def run(self) -> None:
        self.provider.faults.extend(self.dice.choices(FAULTS, k=self.dice.randrange(3)))
        former = [one for one in self.system.former if one is not self.provider]
        self.system.former, before = tuple(former), self.system.former
        self.system.advance(self.provider)
        self.system.former = before

    def seal(self) -> None:
        customer = self.dice.choice(CUSTOMERS)
        start = self.sealed.get(customer, THIS_HOUR - 101 * HOUR)
        end = self.under_way - self.dice.randrange(3) * HOUR
        if end <= start or self.provider.name != "ledger":
            return
        meter = self.system.metered(SKU).meter.name
        figures = 0
        day = start.date()
        while day <= end.date():
            read = self.provider.inner.read_back(customer, meter, day)
            figures += sum(value for hour, value in read.items() if start <= hour < end)
            day += timedelta(days=1)
        self.invoices += 1
        billed = max(figures + self.dice.choice([0, 0, 0, -3, 2]), 0)
        self.system.seal(
            billed, start=start, end=end, invoice=f"in_{self.invoices}", customer=customer
        )
        self.sealed[customer] = end
        self.system.ledger.seen.clear()
        self.system.file.seen.clear()

    def decide(self) -> None:
        """What reading back does to doubtful reports."""
        for row in self.system.reports.list(limit=1000):
            if row.doubtful and row.state == "parked":
                at = {"ledger": self.system.ledger, "file": self.system.file}[row.provider]
                read = at.inner.read_back(row.customer_ref, row.meter, row.hour.date())
                arrived = read.get(row.hour) == row.value
                now = self.system.clock.now()
                assert self.system.reports.unpark(row.id, arrived=arrived, now=now)

    def check(self) -> None:
        for customer in CUSTOMERS:
            sums = {(s.customer, s.sku) for s in self.system.sums_ever()}
            if (customer, SKU) in sums:
                self.system.books(customer)
        for provider in (self.system.ledger, self.system.file):
            for report in provider.seen:
                end = self.sealed.get(report.customer_ref)
                assert end is None or report.hour >= end, report

    def left_alone(self) -> None:
        for _ in range(7):
            self.provider.faults.clear()
            self.decide()
            self.run_well()
            self.system.later(hours=5)

    def run_well(self) -> None:
        for row in self.system.reports.list(cause=Cause.METER_MISSING.value):
            self.system.reports.retry(row.id, now=self.system.clock.now())
        self.system.former, before = (), self.system.former
        self.system.former = tuple(one for one in before if one is not self.provider)
        for provider in before:
            provider.faults.clear()
        self.system.advance(self.provider)
        self.system.former = before


@pytest.mark.parametrize("seed", [0, 1, 6, 7])
def test_any_order_of_events_comes_to_the_log(system: System, seed: int) -> None:
    anything = Anything(system, seed)
    steps: list[Callable[[], None]] = [
        anything.use, anything.use, anything.use, anything.run, anything.run, anything.later,
        anything.later, anything.seal, anything.seal, anything.decide, anything.change,
    ]  # fmt: skip
    for _ in range(STEPS):
        anything.dice.choice(steps)()
        anything.check()
    anything.left_alone()
    anything.check()
    unit = 10 ** (6 - system.metered(SKU).decimals)
    for customer in CUSTOMERS:
        books = system.books(customer)
        assert (books.open, books.unclaimed, books.carried) == (0, 0, 0)
        assert books.logged == books.accepted + books.parked
        assert books.parked < unit
    system.assert_figures_are_exact(system.metered(SKU).decimals)
