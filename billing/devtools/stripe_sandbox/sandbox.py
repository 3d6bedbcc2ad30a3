"""The whole state of one local Stripe."""

from __future__ import annotations

from billing.core.clock import Clock
from billing.devtools.stripe_sandbox.clock import MovableClock
from billing.devtools.stripe_sandbox.customers import Customers
from billing.devtools.stripe_sandbox.cycles import Cycles
from billing.devtools.stripe_sandbox.errors import JsonObject
from billing.devtools.stripe_sandbox.events import Events
from billing.devtools.stripe_sandbox.faults import Faults
from billing.devtools.stripe_sandbox.grants import Checkouts, CreditGrants
from billing.devtools.stripe_sandbox.idempotency import IdempotencyKeys
from billing.devtools.stripe_sandbox.ids import Ids
from billing.devtools.stripe_sandbox.invoice_items import InvoiceItems
from billing.devtools.stripe_sandbox.invoices import Invoices
from billing.devtools.stripe_sandbox.meters import Meters
from billing.devtools.stripe_sandbox.prices import Prices
from billing.devtools.stripe_sandbox.reports import ErrorReports
from billing.devtools.stripe_sandbox.usage import MeterEvents


class Sandbox:
    """One account of one local Stripe: pure state, without any I/O.

    Args:
        clock: What the time is; the sandbox's own clock runs with it and can be moved.
        run: What tells this sandbox's ids from another's; made if not given.
    """

    def __init__(self, clock: Clock, *, run: str | None = None) -> None:
        self.clock = MovableClock(clock)
        self.ids = Ids(run)
        self.faults = Faults()
        self.keys = IdempotencyKeys(self.clock)
        self.events = Events(self.clock, self.ids)
        self.meters = Meters(self.clock, self.ids, self.events)
        self.customers = Customers(self.clock, self.ids, self.events)
        self.usage = MeterEvents(
            self.clock, self.ids, self.meters, self.customers, ErrorReports(self.events)
        )
        self.prices = Prices(self.clock, self.ids)
        self.invoices = Invoices(self.clock, self.ids, self.events, self.customers)
        self.items = InvoiceItems(
            self.clock, self.ids, self.events, self.customers, self.prices, self.invoices
        )
        self.cycles = Cycles(
            self.clock,
            self.ids,
            self.customers,
            self.meters,
            self.usage,
            self.prices,
            self.invoices,
        )
        self.grants = CreditGrants(self.clock, self.ids, self.events, self.customers)
        self.checkouts = Checkouts(self.clock, self.ids, self.events, self.customers)

    def advance(self) -> None:
        """Do what has become due: judge meter events, finalize invoices."""
        self.usage.judge()
        self.invoices.finalise_due()

    def delete_customer(self, customer_id: str) -> JsonObject:
        """Delete a customer for good. Its subscription ends with it, and drafts of cycles go too.

        Raises:
            Refusal: There is no such customer.
        """
        gone = self.customers.delete(customer_id)
        self.invoices.cancel_cycles(customer_id)
        return gone
