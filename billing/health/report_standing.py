"""Where usage is between the log and the provider: what ``billing report status`` gathers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from billing.container import Container
from billing.core.periods import Period, month_of
from billing.health.doctor_reporting import HARMLESS
from billing.health.doctor_reporting_probe import examine_reporting
from billing.health.rules import HealthFinding, Level
from billing.reporting.closed_periods import ClosedPeriod
from billing.reporting.listing import AdjustmentRow, NeedsAttention, ReportCount
from billing.reporting.report_store import Sums
from billing.reporting.setup import MeterState, meter_line
from billing.reporting.usage_report import ReportState

SEALS_OF: Final = timedelta(days=45)
_CARRIES: Final = 10_000
_SEALED: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedTotals:
    """A month's invariant: log = accepted + open + parked + unclaimed + carried."""

    month: str
    sums: Sequence[Sums]

    @property
    def wrong(self) -> list[Sums]:
        """What does not add up."""
        return [each for each in self.sums if each.off_by]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportStatus:
    """Where usage is.

    ``since``: since when the report waits that waits longest for its answer or confirmation.
    ``oldest_open``: the hour of the oldest report without its answer. ``blocked``: meters that are
    not as they have to be, and why; None where the provider was not asked. ``owed``: former
    providers with reports that have no answer, and whether they can be asked for it.
    """

    provider: str
    findings: Sequence[HealthFinding]
    counts: Mapping[ReportState, ReportCount]
    since: datetime | None
    oldest_open: datetime | None
    parked: Sequence[NeedsAttention]
    blocked: Mapping[str, str] | None
    owed: Mapping[str, bool]
    seals: Sequence[ClosedPeriod]
    carries: Sequence[AdjustmentRow]
    books: Sequence[ReportedTotals]
    now: datetime

    @property
    def needs_somebody(self) -> bool:
        """Whether something does not go on by itself."""
        return (
            any(each.level is Level.FAIL for each in self.findings)
            or any(each.cause not in HARMLESS for each in self.parked)
            or bool(self.blocked)
            or not all(self.owed.values())
            or any(each.wrong for each in self.books)
        )


def status_of(container: Container, *, check: bool) -> ReportStatus:
    """Gather everything; asks the provider only with ``check``.

    Raises:
        ProviderUnavailable: With ``check``, it did not answer.
        ConfigurationError: With ``check``, it cannot be asked as the settings are.
    """
    name = container.settings.provider_name
    now = container.clock.now()
    reports = container.reporting.reports
    month = month_of(now)
    with container.engine.connect() as connection:
        findings = list(examine_reporting(container, connection))
    seals = reports.closed_periods.list(name, _SEALED)
    usable = {each.name for each in container.reporting.former()}
    return ReportStatus(
        provider=name,
        findings=findings,
        counts=reports.counts(name),
        since=reports.oldest_unconfirmed(name),
        oldest_open=reports.oldest_open(name),
        parked=reports.attention_by_cause(name),
        blocked=_blocked(container) if check else None,
        owed={each: each in usable for each in reports.open_elsewhere(name)},
        seals=[
            each for each in seals if each.settled_at is None or each.noticed_at >= now - SEALS_OF
        ],
        carries=reports.carries(period=month, limit=_CARRIES),
        books=[
            ReportedTotals(month=each.label, sums=reports.sums(each))
            for each in (month, _before(month))
        ],
        now=now,
    )


def _before(month: Period) -> Period:
    return month_of(month.start - timedelta(days=1))


def _blocked(container: Container) -> dict[str, str]:
    checks = container.reporting.provider.ensure_meters(container.reporting.meters(), dry_run=True)
    lines = [meter_line(each) for each in checks]
    return {
        line.meter.name: "; ".join(line.differences) or "not there: billing stripe setup"
        for line in lines
        if line.state in {MeterState.DIFFERS, MeterState.MISSING}
    }
