"""Whatever people, providers and networks do in whatever order: in the end all is confirmed."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from confirm_support import Desk, at_stripe
from reporting_support import CUSTOMERS, LAST_HOUR, Container, answer_lost, answering
from stripe_bench import LocalStripe

from billing.providers.port import ProviderCause, ProviderUnavailable
from billing.reporting.destination import CustomerIds

STEPS = 60
HOUR = timedelta(hours=1)


class Walk:
    """Random steps over a few hours of two customers."""

    def __init__(self, desk: Desk, seed: int) -> None:
        self.desk = desk
        self.choice = random.Random(seed)
        self.faulty = desk.container.ledger if desk.local is None else None

    def hour(self) -> datetime:
        return LAST_HOUR - self.choice.randrange(4) * HOUR

    def use(self) -> None:
        customer = self.choice.choice(CUSTOMERS)
        self.desk.container.use(self.choice.randrange(1, 50), self.hour(), customer=customer)

    def edit(self) -> None:
        """Somebody changes a figure that is not confirmed; of others only a comparison tells."""
        rows = self.desk.rows("customer_id, hour, state, latest")
        known = [row for row in rows if row[3] and row[2] != "confirmed"]
        if known:
            customer, hour, _, _ = self.choice.choice(known)
            self.desk.edit(self.choice.randrange(200), hour, customer)

    def advance(self) -> None:
        if self.faulty is not None and self.choice.random() < 0.5:
            causes = (
                ProviderCause.TIMED_OUT,
                ProviderCause.RATE_LIMITED,
                ProviderCause.SERVER_ERROR,
            )
            self.faulty.faults.append(
                self.choice.choice([answer_lost, answering(self.choice.choice(causes))])
            )
        self.desk.advance(self.faulty)

    def confirm(self) -> None:
        self.desk.confirm()

    def outage(self) -> None:
        down = self.desk.provider.silence is None and self.choice.random() < 0.5
        self.desk.provider.silence = ProviderUnavailable("down") if down else None

    def wait(self) -> None:
        self.desk.later(minutes=self.choice.choice([1, 10, 20, 60, 400]))

    def go(self) -> None:
        steps: list[Callable[[], None]] = [
            *[self.use] * 2, self.edit, *[self.advance] * 3, *[self.confirm] * 4, self.outage,
            *[self.wait] * 4,
        ]  # fmt: skip
        for _ in range(STEPS):
            self.choice.choice(steps)()
            self.desk.container.sums()  # the books hold at every step

    def settle(self) -> None:
        """Everybody behaves, and a person mends what was parked."""
        self.desk.provider.silence = None
        if self.faulty is not None:
            self.faulty.faults.clear()
        for _ in range(12):
            self.desk.advance()
            self.desk.later(hours=2)
            self.desk.confirm()
        query = "customer_id, hour, value, state, cause, latest"
        for customer, hour, value, state, cause, latest in self.desk.rows(query):
            if (state, cause, latest) == ("parked", "differs", True):
                self.desk.edit(int(value), hour, customer)
        for _ in range(4):
            self.desk.later(days=1)
            self.desk.confirm()
            self.desk.advance()
        self.desk.later(hours=1)
        self.desk.confirm()


@pytest.mark.parametrize("seed", range(6))
def test_in_the_end_the_ledger_counts_what_the_log_has(container: Container, seed: int) -> None:
    walk = Walk(Desk(container, container.ledger.inner, CustomerIds.OURS), seed)
    walk.use()
    walk.go()
    walk.settle()
    walk.desk.assert_all_confirmed()


@pytest.mark.parametrize("seed", range(6, 9))
def test_in_the_end_stripe_counts_what_the_log_has(
    container: Container, local: LocalStripe, seed: int
) -> None:
    walk = Walk(at_stripe(container, local), seed)
    local.control.post("settings", summary_seconds=walk.choice.choice([0, 600, 3000]))
    walk.use()
    walk.go()
    walk.settle()
    walk.desk.assert_all_confirmed()
