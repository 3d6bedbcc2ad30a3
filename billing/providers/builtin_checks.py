"""Checks of meters and reports, and invoice lines as JSON, for the built-in providers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from billing.core.clock import format_instant, parse_instant
from billing.core.errors import NotFound
from billing.core.periods import hour_floor
from billing.providers.port import (
    InvoiceLine,
    MeterCheck,
    ProviderAnswer,
    ProviderCause,
    ProviderInvoice,
    ProviderMeter,
    UsageReport,
)
from billing.providers.report_value import MAX_IDENTIFIER, fits

_HOUR: Final = timedelta(hours=1)


class BuiltinProvider:
    """A provider that needs no set-up, takes figures of any age, and makes no invoice by itself."""

    max_age: timedelta | None = None

    def ensure_meters(
        self, meters: Sequence[ProviderMeter], *, dry_run: bool = False
    ) -> list[MeterCheck]:
        """Every meter is there."""
        del dry_run
        return [MeterCheck(meter=meter, provider_id=meter.name, created=False) for meter in meters]

    def invoices_since(self, created: datetime) -> Sequence[ProviderInvoice]:
        """Give none."""
        del created
        return ()

    def provider_invoice(self, provider_id: str) -> ProviderInvoice:
        """Find none.

        Raises:
            NotFound: Always.
        """
        raise NotFound("invoice", provider_id, "this provider makes none by itself")


def refusal(report: UsageReport) -> ProviderAnswer | None:
    """Refuse a report that no provider could take; None where it is well formed."""
    if not fits(report.value):
        return ProviderAnswer(cause=ProviderCause.INVALID_VALUE, detail="more than 15 digits")
    wrong = ""
    if not 1 <= len(report.identifier) <= MAX_IDENTIFIER:
        wrong = f"an identifier has 1 to {MAX_IDENTIFIER} characters"
    elif report.hour != hour_floor(report.hour):
        wrong = "the hour is not the start of a UTC hour"
    elif not report.hour <= report.timestamp < report.hour + _HOUR:
        wrong = "the timestamp is outside the hour"
    return ProviderAnswer(cause=ProviderCause.INVALID_REQUEST, detail=wrong) if wrong else None


def lines_as_data(lines: Sequence[InvoiceLine]) -> list[dict[str, Any]]:
    """Invoice lines as JSON can keep them; ``line_of`` reads one back."""
    return [
        {
            "key": line.key,
            "description": line.description,
            "amount_minor": line.amount_minor,
            "period_start": format_instant(line.period_start),
            "period_end": format_instant(line.period_end),
        }
        for line in lines
    ]


def line_of(data: Mapping[str, Any]) -> InvoiceLine:
    """One line of ``lines_as_data``."""
    return InvoiceLine(
        key=data["key"],
        description=data["description"],
        amount_minor=data["amount_minor"],
        period_start=parse_instant(data["period_start"], field="period_start"),
        period_end=parse_instant(data["period_end"], field="period_end"),
    )


def total_of(lines: Sequence[InvoiceLine]) -> int:
    """The sum of lines, in minor units."""
    return sum(line.amount_minor for line in lines)
