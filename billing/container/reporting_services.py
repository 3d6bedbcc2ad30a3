"""The way to a billing provider: which one, its meters, and what gets usage there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from billing.catalog.customers import CustomerStore
from billing.catalog.skus import SkuStore
from billing.core.clock import Clock
from billing.core.errors import ConfigurationError
from billing.providers.files import FileProvider
from billing.providers.ledger import LedgerProvider
from billing.providers.port import Provider, ProviderMeter
from billing.providers.stripe.api_key import check_key
from billing.providers.stripe.customer_link import StripeCustomer
from billing.reporting.comparison import ProviderComparison
from billing.reporting.confirmations import ConfirmationStore
from billing.reporting.meter_names import meter_of, meter_prefix
from billing.reporting.rate_limiter import TokenBucket
from billing.reporting.read_back import ReadBack, ReadBackPace
from billing.reporting.report_store import CustomerIds, Destination, Metered, ReportStore
from billing.reporting.sender import Pace, ReportSender
from billing.reporting.setup import Setup
from billing.settings import Settings
from billing.stripe_webhooks.event_store import WebhookEvents
from billing.stripe_webhooks.handlers import EventHandlers
from billing.stripe_webhooks.processor import WebhookProcessor
from billing.stripe_webhooks.topups import TopupTerms

if TYPE_CHECKING:  # stripe is an extra
    from billing.container.stripe_account import StripeAccount
    from billing.providers.stripe.provider import StripeProvider

CUSTOMER_IDS: Final = {
    "ledger": CustomerIds.OURS,
    "file": CustomerIds.OURS,
    "stripe": CustomerIds.STRIPE,
}

_SEARCHES_PER_SECOND: Final = 10.0
"""Customers are found by search, of which Stripe allows 20 a second."""


SPACING: Final = {"stripe": timedelta(hours=6)}
"""Stripe allows some hundred reads a month per transaction: one agreement of a day's figures speaks
for the first reading of the next ones for so long. What differs or was told of is read at once."""


class ReportingServices:
    """The services between the rollups and a provider. Nothing connects before it is used.

    Args:
        settings: Which provider, its key, and the pace.
        engine: PostgreSQL, as the owner role.
        catalog: SKUs.
        clock: The time.
    """

    def __init__(
        self, settings: Settings, engine: sa.Engine, catalog: SkuStore, clock: Clock
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._catalog = catalog
        self._clock = clock

    @cached_property
    def provider(self) -> Provider:
        """The provider that gets usage now.

        Raises:
            ConfigurationError: It cannot be talked to as the settings are.
        """
        return self.provider_named(self._settings.provider_name)

    def provider_named(self, name: str) -> Provider:
        """One provider, whether or not it gets usage now.

        Raises:
            ConfigurationError: It cannot be talked to as the settings are.
        """
        match name:
            case "ledger":
                return LedgerProvider(self._engine)
            case "file":
                return FileProvider(self._settings.report_dir)
            case "stripe":
                return self.stripe
            case _:
                raise ConfigurationError(
                    "WEIGHBRIDGE_PROVIDER", f"there is no {name!r}", "use ledger, stripe or file"
                )

    @cached_property
    def _stripe_account(self) -> StripeAccount:
        key, base = self._stripe_key(), self._settings.stripe_api_base
        check_key(key, self._settings.stripe_live, base)
        try:
            from billing.container.stripe_account import StripeAccount  # noqa: PLC0415 - an extra
        except ModuleNotFoundError as error:
            if error.name not in {"stripe", "requests"}:
                raise
            raise ConfigurationError(
                "STRIPE_API_KEY",
                "stripe is not installed",
                'install it: pip install "weighbridge[stripe]"',
            ) from error
        prefix = meter_prefix(self._settings.environment)
        return StripeAccount(key, base, lambda name: name.startswith(prefix))

    def _stripe_key(self) -> str:
        key = self._settings.stripe_api_key
        return key.get_secret_value() if key else ""

    @property
    def stripe(self) -> StripeProvider:
        """Stripe, whether or not it gets usage now.

        Raises:
            ConfigurationError: The key cannot or must not be used, or stripe is not installed.
        """
        return self._stripe_account.provider

    def stripe_customer(self, ref: str) -> StripeCustomer:
        """The Stripe customer of an id; see ``StripeCustomers.at``."""
        return self._stripe_account.customers.at(ref)

    def setup(self) -> Setup:
        """Sets Stripe up, whether or not it gets usage now.

        Raises:
            ConfigurationError: The key cannot or must not be used.
        """
        bucket = TokenBucket(
            _SEARCHES_PER_SECOND,
            int(_SEARCHES_PER_SECOND),
            monotonic=time.monotonic,
            sleep=time.sleep,
        )
        return Setup(self.stripe, CustomerStore(self._engine), bucket.take)

    @property
    def bills_live(self) -> bool:
        """Whether real customers are billed: what the key is for, else what STRIPE_LIVE says."""
        key = self._stripe_key()
        return key.startswith("sk_live_") if key else self._settings.stripe_live

    @cached_property
    def webhook_processor(self) -> WebhookProcessor:
        """The processor of Stripe's events; the key is needed only where Stripe has to be asked."""
        settings = self._settings
        handlers = EventHandlers(
            stripe=lambda: self._stripe_account,
            confirmations=ConfirmationStore(self._engine),
            terms=TopupTerms(currency=settings.currency, credit_value=settings.credit_value),
        )
        return WebhookProcessor(
            self._engine,
            handlers,
            live=self.bills_live,
            customer_ids=CUSTOMER_IDS,
            clock=self._clock,
        )

    @cached_property
    def webhook_events(self) -> WebhookEvents:
        """The events that Stripe has told."""
        return WebhookEvents(self._engine)

    @cached_property
    def reports(self) -> ReportStore:
        """The outbox of reports."""
        return ReportStore(self._engine)

    def metered(self) -> dict[str, Metered]:
        """The meter of each SKU at the provider, by the SKU's id."""
        return {
            sku.id: Metered(
                meter=meter_of(sku, self._settings.environment), decimals=sku.meter_decimals
            )
            for sku in self._catalog.list()
        }

    def destination(self, metered: dict[str, Metered]) -> Destination:
        """The destination of usage now."""
        name = self._settings.provider_name
        return Destination(
            environment=self._settings.environment,
            provider=name,
            customer_ids=CUSTOMER_IDS[name],
            metered=lambda sku: metered[sku],
            max_age=self.provider.max_age,
        )

    def meters(self) -> list[ProviderMeter]:
        """Every SKU's meter."""
        return [one.meter for one in self.metered().values()]

    def pace(self) -> Pace:
        """Limits."""
        return Pace.of_settings(
            lag_seconds=self._settings.report_lag_seconds,
            rate_per_second=self._settings.report_rate,
            senders=self._settings.report_senders,
        )

    def reporter(self) -> ReportSender:
        """Sends what is due. Made anew for each run, so that it knows the SKUs of that moment.

        Raises:
            ConfigurationError: The provider cannot be talked to as the settings are.
        """
        metered = self.metered()
        return ReportSender(
            self.reports,
            self.provider,
            self.destination(metered),
            [one.meter for one in metered.values()],
            self._clock,
            former=self.former(),
            pace=self.pace(),
        )

    def reader(self, provider: Provider | None = None) -> ReadBack:
        """Reads back what a provider has accepted, by default the one that gets usage now.

        Raises:
            ConfigurationError: The provider cannot be talked to as the settings are.
        """
        chosen = provider or self.provider
        return ReadBack(
            ConfirmationStore(self._engine),
            chosen,
            self._clock,
            environment=self._settings.environment,
            pace=ReadBackPace(spacing=SPACING.get(chosen.name, timedelta(0))),
        )

    def readers(self) -> list[ReadBack]:
        """One for the provider that gets usage now, and one for each former one to be read back.

        Raises:
            ConfigurationError: The provider cannot be talked to as the settings are.
        """
        current = self._settings.provider_name
        others = [name for name in ConfirmationStore(self._engine).providers() if name != current]
        return [self.reader(), *(self.reader(other) for other in self._usable(others))]

    def comparison(self) -> ProviderComparison:
        """Compares the log with what the provider accepted and counts.

        Raises:
            ConfigurationError: The provider cannot be talked to as the settings are.
        """
        destination = self.destination(self.metered())
        return ProviderComparison(self._engine, self.provider, destination, self._clock)

    def former(self) -> Sequence[Provider]:
        """Providers from before a change that still owe an answer and can be asked for it."""
        return self._usable(self.reports.open_elsewhere(self._settings.provider_name))

    def _usable(self, names: Sequence[str]) -> list[Provider]:
        found: list[Provider] = []
        for name in names:
            try:
                found.append(self.provider_named(name))
            except ConfigurationError:
                # Its reports stay as they are and are told by ``billing report status``.
                continue
        return found
