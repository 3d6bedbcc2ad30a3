"""A whole system in memory: for eager tasks and unit tests, where no server runs.

::

    app.conf.task_always_eager = True
    system = MemorySystem(skus=[page_capture], credits={"acme": "100"})
    Metering(app, build=lambda settings: system)
    ...
    assert [event.line for event in system.events] == ["page-capture"]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from billing.core.clock import Clock, SystemClock, to_ms
from billing.core.credits import parse_credits
from billing.core.errors import NotFound
from billing.core.periods import month_of
from billing.core.reservation import AccountState, LoadOutcome
from billing.core.sku import Sku
from billing.core.usage_event import UsageEvent
from billing.metering.meter import Meter
from billing.quota.memory_store import MemoryQuotaStore
from billing.settings import Settings


class Collected:
    """Keeps events in a list: publisher, journal and spool of a system without servers."""

    def __init__(self) -> None:
        self.events: list[UsageEvent] = []

    def publish(self, events: Sequence[UsageEvent]) -> None:
        """Keep them; a list always confirms."""
        self.events += events

    def append(self, events: Sequence[UsageEvent]) -> None:
        """Keep them."""
        self.events += events


class MemorySystem:
    """What ``bootstrap.Container`` is to a process, without any server.

    Args:
        skus: What is sold.
        credits: Granted to each customer, as decimal strings.
        settings: Limits; the defaults if not given.
        clock: The time.
    """

    def __init__(
        self,
        *,
        skus: Iterable[Sku],
        credits: Mapping[str, str],  # noqa: A002 - the field's word; nothing here needs the built-in
        settings: Settings | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.clock: Clock = clock or SystemClock()
        self._skus = {sku.id: sku for sku in skus}
        self._granted = {customer: parse_credits(text) for customer, text in credits.items()}
        self.quota = MemoryQuotaStore(
            self.clock, hold_record_ttl_seconds=self.settings.hold_record_ttl_seconds
        )
        self.published = Collected()
        self.meter = Meter(
            quota=self.quota,
            skus=self.sku,
            refresh=self.load,
            publisher=self.published,
            journal=Collected(),
            spool=Collected(),
            clock=self.clock,
            hold_ttl_seconds=self.settings.hold_ttl_seconds,
            currency=self.settings.currency,
        )
        self.parent_meter = self.meter

    def end_leases(self) -> None:
        """Nothing is leased here: leased SKUs are admitted exactly."""

    @property
    def events(self) -> list[UsageEvent]:
        """Every event so far, with the figures that were decided."""
        return [*self.quota.outbox, *self.published.events]

    def sku(self, sku_id: str) -> Sku:
        """The SKU of an id.

        Raises:
            NotFound: There is none.
        """
        try:
            return self._skus[sku_id]
        except KeyError:
            raise NotFound("SKU", sku_id, "give it to MemorySystem(skus=…)") from None

    def load(self, customer: str) -> LoadOutcome:
        """Put the customer's account into the quota store.

        Raises:
            NotFound: There is no such customer.
        """
        if customer not in self._granted:
            raise NotFound("customer", customer, "give it to MemorySystem(credits=…)")
        month = month_of(self.clock.now())
        view = self.quota.account(customer)
        return self.quota.load(
            AccountState(
                customer=customer,
                epoch=view.epoch + 1 if view else 1,
                version=view.version + 1 if view else 1,
                suspended=False,
                granted_microcredits=self._granted[customer],
                settled_microcredits=view.settled_microcredits if view else 0,
                late_microcredits=0,
                period_start_ms=to_ms(month.start),
                period_end_ms=to_ms(month.end),
            )
        )
