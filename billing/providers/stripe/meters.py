"""Billing meters at Stripe: made with windows of an hour, and compared with what is needed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import stripe

from billing.providers.port import MeterCheck, ProviderMeter
from billing.providers.stripe.client import PAGE, asking, idempotency_key, once

CUSTOMER_KEY: Final = "stripe_customer_id"
VALUE_KEY: Final = "value"


class StripeMeters:
    """Meters by their event names.

    Args:
        client: The client of stripe-python. May be used by several threads.
    """

    def __init__(self, client: stripe.StripeClient) -> None:
        self._meters = client.v1.billing.meters
        self._ids: dict[str, str] = {}

    def ensure(self, meters: Sequence[ProviderMeter], *, dry_run: bool = False) -> list[MeterCheck]:
        """Compare formula, window, state and payload keys; see ``port.Provider``.

        A meter somebody has deactivated is a difference and is not made anew.

        Raises:
            StripeUnanswered: Stripe did not answer, or refuses a new meter.
        """
        with asking():
            there = self._by_name()
            return [self._checked(meter, there.get(meter.name), dry_run) for meter in meters]

    def id_of(self, name: str) -> str:
        """Stripe's id of a meter; empty where there is none."""
        if name not in self._ids:
            self._by_name()
        return self._ids.get(name, "")

    def _by_name(self) -> dict[str, Any]:
        """Every meter by its event name: the active one, else the newest of the others."""
        chosen: dict[str, Any] = {}
        for found in self._meters.list({"limit": PAGE}).auto_paging_iter():
            before = chosen.get(found.event_name)
            if before is None or _rank(found) > _rank(before):
                chosen[found.event_name] = found
        self._ids = {name: found.id for name, found in chosen.items()}
        return chosen

    def _checked(self, meter: ProviderMeter, found: Any, dry_run: bool) -> MeterCheck:  # noqa: ANN401 - a meter of Stripe's
        created = found is None and not dry_run
        if created:
            found = self._made(meter)
            self._ids[meter.name] = found.id
        if found is None:
            return MeterCheck(meter=meter, provider_id="", created=False)
        return MeterCheck(
            meter=meter, provider_id=found.id, created=created, differences=differences(found)
        )

    def _made(self, meter: ProviderMeter) -> stripe.billing.Meter:
        params: Any = {
            "display_name": meter.display_name,
            "event_name": meter.name,
            "default_aggregation": {"formula": "sum"},
            "customer_mapping": {"type": "by_id", "event_payload_key": CUSTOMER_KEY},
            "value_settings": {"event_payload_key": VALUE_KEY},
            "event_time_window": "hour",
        }
        content = hashlib.sha256(repr(sorted(params.items())).encode()).hexdigest()[:16]
        made: stripe.billing.Meter = once(
            idempotency_key("meter", meter.name, content),
            lambda options: self._meters.create(params, options),
            lambda: self._by_name().get(meter.name),
        )
        return made


def differences(found: Any) -> tuple[str, ...]:  # noqa: ANN401 - a meter of Stripe's
    """List the settings by which a meter at Stripe would count otherwise than needed. Pure."""
    mapping = found.customer_mapping
    compared = (
        ("status", found.status, "active"),
        ("default_aggregation.formula", found.default_aggregation.formula, "sum"),
        ("event_time_window", found.event_time_window, "hour"),
        ("customer_mapping.type", mapping.type, "by_id"),
        ("customer_mapping.event_payload_key", mapping.event_payload_key, CUSTOMER_KEY),
        ("value_settings.event_payload_key", found.value_settings.event_payload_key, VALUE_KEY),
    )
    return tuple(
        f"{field} is {is_or_none or 'none'}, needed {needed}"
        for field, is_or_none, needed in compared
        if is_or_none != needed
    )


def _rank(meter: Any) -> tuple[bool, int]:  # noqa: ANN401 - a meter of Stripe's
    return meter.status == "active", meter.created
