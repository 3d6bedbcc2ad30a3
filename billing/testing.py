"""A system in memory, for eager tasks and unit tests: no server runs.

Example::

    >>> clock = ManualClock(datetime(2026, 3, 1, 9, 30, tzinfo=UTC))
    >>> system = MemorySystem(
    ...     skus=[sku("page-render", price="2.5", unit="page")],
    ...     credits={"acme": "100"},
    ...     clock=clock,
    ... )
    >>> app = Celery("shop", set_as_current=False)
    >>> app.conf.task_always_eager = True
    >>> metering = Metering(app, build=lambda settings: system)
    >>> @app.task(base=MeteredTask, sku="page-render")
    ... def render(url):
    ...     usage.record(subject=url)
    ...     return "rendered"
    >>> render.bill_to("acme").delay("https://example.com/").get()
    'rendered'
    >>> [(event.customer, event.line, event.amount_microcredits) for event in system.events]
    [('acme', 'page-render', 2500000)]

``Celery`` is Celery's; ``Metering``, ``MeteredTask`` and ``usage`` are where an app has them from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from billing.core.clock import EPOCH, Clock, ManualClock, SystemClock, to_ms
from billing.core.credits import parse_credits
from billing.core.errors import NotFound
from billing.core.periods import month_of
from billing.core.reservation import AccountState, LoadOutcome
from billing.core.sku import (
    DenialPolicy,
    FailurePolicy,
    Price,
    Pricing,
    Sku,
    UnavailablePolicy,
    check_sku_id,
)
from billing.core.usage_event import UsageEvent
from billing.core.usage_event_json import from_wire
from billing.metering.meter import Meter
from billing.quota.memory_store import MemoryQuotaStore
from billing.settings import Settings
from billing.transport.settled_figures import Encodable


def sku(
    sku_id: str,
    *,
    price: str,
    unit: str = "unit",
    pricing: str = Pricing.FIXED,
    hold_quantity: int = 1,
    failure_policy: str = FailurePolicy.RELEASE,
    denial_policy: str = DenialPolicy.FAIL,
    unavailable_policy: str = UnavailablePolicy.RETRY,
    allow_limit: int = 0,
) -> Sku:
    """Make a SKU for a test: fixed, released on failure and denied at once, unless overridden.

    Args:
        sku_id: The name that tasks give.
        price: Credits for one unit, as a decimal string; in force since ever.
        unit: The word for one of it.
        pricing: ``fixed`` or ``measured``.
        hold_quantity: Units held where the task does not say.
        failure_policy: ``release`` or ``charge``.
        denial_policy: ``fail`` or ``defer``.
        unavailable_policy: ``retry``, ``deny`` or ``allow``.
        allow_limit: Runs admitted without a hold, if ``allow``.

    Raises:
        InvalidValue: The id or the price cannot be one.
        ValueError: There is no such policy.
    """
    return Sku(
        id=check_sku_id(sku_id),
        unit=unit,
        pricing=Pricing(pricing),
        hold_quantity=hold_quantity,
        failure_policy=FailurePolicy(failure_policy),
        denial_policy=DenialPolicy(denial_policy),
        unavailable_policy=UnavailablePolicy(unavailable_policy),
        allow_limit=allow_limit,
        prices=(Price(parse_credits(price), EPOCH),),
    )


class Collected:
    """A list of events: publisher, journal and spool of a system without servers."""

    def __init__(self) -> None:
        self.events: list[UsageEvent] = []

    def publish(self, events: Sequence[Encodable]) -> None:
        """Keep them; a list always confirms."""
        self.events += (from_wire(event.to_wire()) for event in events)

    def append(self, events: Sequence[Encodable]) -> None:
        """Keep them."""
        self.publish(events)

    def close(self) -> None:
        """Nothing is open."""


class MemorySystem:
    """The ``Container`` of a process without servers.

    Args:
        skus: The SKUs sold; see ``sku``.
        credits: The credits of each customer, as decimal strings.
        settings: Limits; the defaults if not given.
        clock: The time; a ``ManualClock`` where a test moves it.
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
        """Every event so far, with its settled figures."""
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


__all__ = ["ManualClock", "MemorySystem", "sku"]
