"""The way to a billing provider: which one, its meters, and what gets usage there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Final

import sqlalchemy as sa

from billing.catalog.store import Catalog
from billing.core.clock import Clock
from billing.core.errors import ConfigurationError
from billing.reporting.metering import meter_of
from billing.reporting.provider import Meter, Provider
from billing.reporting.providers.file import FileProvider
from billing.reporting.providers.ledger import LedgerProvider
from billing.reporting.providers.stripe import StripeProvider
from billing.reporting.providers.stripe_key import check_key
from billing.reporting.run import Pace, Reporter
from billing.reporting.store import CustomerIds, Destination, Metered, Reports
from billing.settings import Settings

CUSTOMER_IDS: Final = {
    "ledger": CustomerIds.OURS,
    "file": CustomerIds.OURS,
    "stripe": CustomerIds.STRIPE,
}


class Reporting:
    """Everything between the rollups and a provider. Nothing connects before it is used.

    Args:
        settings: Which provider, its key, and the pace.
        engine: PostgreSQL, as the owner role.
        catalog: SKUs.
        clock: The time.
    """

    def __init__(
        self, settings: Settings, engine: sa.Engine, catalog: Catalog, clock: Clock
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._catalog = catalog
        self._clock = clock

    @cached_property
    def provider(self) -> Provider:
        """Who gets usage now.

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
    def stripe(self) -> StripeProvider:
        """Stripe, whether or not it gets usage now.

        Raises:
            ConfigurationError: The key cannot or must not be used.
        """
        key = self._settings.stripe_api_key
        text = key.get_secret_value() if key else ""
        base = self._settings.stripe_api_base
        check_key(text, self._settings.stripe_live, base)
        return StripeProvider.connect(text, base)

    @cached_property
    def reports(self) -> Reports:
        """The outbox of reports."""
        return Reports(self._engine)

    def metered(self) -> dict[str, Metered]:
        """How each SKU is counted at the provider, by its id."""
        return {
            sku.id: Metered(
                meter=meter_of(sku, self._settings.environment), decimals=sku.meter_decimals
            )
            for sku in self._catalog.list()
        }

    def destination(self, metered: dict[str, Metered]) -> Destination:
        """Where usage goes now."""
        name = self._settings.provider_name
        return Destination(
            environment=self._settings.environment,
            provider=name,
            customer_ids=CUSTOMER_IDS[name],
            metered=lambda sku: metered[sku],
            max_age=self.provider.max_age,
        )

    def meters(self) -> list[Meter]:
        """Every SKU's meter."""
        return [one.meter for one in self.metered().values()]

    def pace(self) -> Pace:
        """Limits."""
        return Pace.of_settings(
            lag_seconds=self._settings.report_lag_seconds,
            rate_per_second=self._settings.report_rate,
            senders=self._settings.report_senders,
        )

    def reporter(self) -> Reporter:
        """Sends what is due. Made anew for each run, so that it knows the SKUs of that moment.

        Raises:
            ConfigurationError: The provider cannot be talked to as the settings are.
        """
        metered = self.metered()
        return Reporter(
            self.reports,
            self.provider,
            self.destination(metered),
            [one.meter for one in metered.values()],
            self._clock,
            former=self.former(),
            pace=self.pace(),
        )

    def former(self) -> Sequence[Provider]:
        """Providers from before a change that still owe an answer and can be asked for it."""
        found: list[Provider] = []
        for name in self.reports.open_elsewhere(self._settings.provider_name):
            try:
                found.append(self.provider_named(name))
            except ConfigurationError:
                # Its reports stay open and are told by ``billing report status``.
                continue
        return found
