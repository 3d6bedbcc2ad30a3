"""A report of usage that Stripe took and then rejected. Pure.

Only samples of what was rejected are listed, so a report says where to look, not what is missing:
everything that was sent in its window is read back, the samples at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from billing.providers.port import VERDICTS, ProviderCause, ProviderVerdict
from billing.providers.stripe.errors import cause_of_code
from billing.stripe_webhooks.stripe_event import Unreadable, instant_of, is_name, mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterErrors:
    """The usage rejected in one window of validation.

    ``codes`` counts every error, ``sampled`` names some of the reports by identifier; ``start`` and
    ``end`` are Stripe's times of validating.
    """

    start: datetime
    end: datetime
    codes: Mapping[str, int]
    sampled: Mapping[str, ProviderCause]

    @property
    def summary(self) -> str:
        """For people: ``meter_event_customer_not_found 3, archived_meter 1``."""
        return ", ".join(f"{code} {count}" for code, count in self.codes.items()) or "no code"


def read_meter_errors(event: Mapping[str, Any]) -> MeterErrors:
    """The errors in an event as it was fetched.

    Args:
        event: ``v1.billing.meter.error_report_triggered`` or ``v1.billing.meter.no_meter_found``.

    Raises:
        Unreadable: It has no window.
    """
    data = mapping(event.get("data"), "its data")
    start = instant_of(data.get("validation_start"), "its validation_start")
    end = instant_of(data.get("validation_end"), "its validation_end")
    if end < start:
        raise Unreadable("its window ends before it starts")
    codes: Counter[str] = Counter()
    sampled: dict[str, ProviderCause] = {}
    for code, kind in _kinds(data):
        count = kind.get("error_count")
        codes[code] += count if isinstance(count, int) and count > 0 else 1
        cause = cause_of_code(code)
        if VERDICTS[cause] is not ProviderVerdict.ACCEPTED:
            sampled |= dict.fromkeys(_identifiers(kind), cause)
    return MeterErrors(start=start, end=end, codes=codes, sampled=sampled)


def _kinds(data: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reason = data.get("reason")
    for kind in _list(reason, "error_types"):
        if isinstance(kind, Mapping):
            code = kind.get("code")
            yield (str(code) if is_name(code) else "unknown"), kind


def _identifiers(kind: Mapping[str, Any]) -> Iterator[str]:
    for sample in _list(kind, "sample_errors"):
        request = sample.get("request") if isinstance(sample, Mapping) else None
        identifier = request.get("identifier") if isinstance(request, Mapping) else None
        if is_name(identifier):
            yield str(identifier)


def _list(thing: object, field: str) -> list[Any]:
    found = thing.get(field) if isinstance(thing, Mapping) else None
    return found if isinstance(found, list) else []
