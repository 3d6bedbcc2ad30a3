"""The place of all usage between the log and the provider, for ``billing report status``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from billing.core.periods import Period, month_of
from billing.health.facts import HealthSources
from billing.health.finding import HealthFinding, Level
from billing.health.report_facts import ReportFacts, report_facts, report_findings
from billing.health.report_rules import HARMLESS
from billing.reporting.closed_periods import ClosedPeriod
from billing.reporting.listing import AdjustmentRow, ReportCount
from billing.reporting.report_store import ReportStore, Sums
from billing.reporting.setup import MeterState, meter_line
from billing.reporting.usage_report import ReportState

CLOSED_WITHIN: Final = timedelta(days=45)
_MOST_CARRIES: Final = 10_000
_MOST_CLOSED: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedTotals:
    """A month's invariant: log = accepted + open + parked + unclaimed + carried."""

    month: str
    sums: Sequence[Sums]

    @property
    def wrong(self) -> list[Sums]:
        """Sums that do not add up."""
        return [each for each in self.sums if each.off_by]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportStatus:
    """The place of all usage between the log and the provider.

    Attributes:
        provider: The present provider's name.
        facts: The state of the reports to it.
        findings: The doctor's verdicts on them.
        counts: Hours by the state of their last report.
        blocked: Meters that are not as they have to be, and why; None: the provider was not asked.
        owed: Former providers with reports that have no answer: whether they can be asked for it.
        closed: Periods that the provider has made final lately.
        carries: Carry lines of this month.
        months: The sums of this month and the one before.
        now: The time.
    """

    provider: str
    facts: ReportFacts
    findings: Sequence[HealthFinding]
    counts: Mapping[ReportState, ReportCount]
    blocked: Mapping[str, str] | None
    owed: Mapping[str, bool]
    closed: Sequence[ClosedPeriod]
    carries: Sequence[AdjustmentRow]
    months: Sequence[ReportedTotals]
    now: datetime

    @property
    def needs_somebody(self) -> bool:
        """True where something does not go on by itself."""
        return (
            any(each.level is Level.FAIL for each in self.findings)
            or any(each.cause not in HARMLESS for each in self.facts.parked)
            or bool(self.blocked)
            or not all(self.owed.values())
            or any(each.wrong for each in self.months)
        )


def report_status(sources: HealthSources, *, check: bool) -> ReportStatus:
    """Gather everything; asks the provider only with ``check``.

    Raises:
        ProviderUnavailable: With ``check``, it did not answer.
        ConfigurationError: With ``check``, it cannot be asked as the settings are.
    """
    name, now = sources.settings.provider_name, sources.clock.now()
    reports, month = ReportStore(sources.engine), month_of(now)
    facts = report_facts(sources)
    closed = reports.closed_periods.list(name, _MOST_CLOSED)
    usable = {each.name for each in sources.reporting.former()}
    return ReportStatus(
        provider=name,
        facts=facts,
        findings=list(report_findings(sources, facts)),
        counts=reports.counts(name),
        blocked=_blocked(sources) if check else None,
        owed={each: each in usable for each in reports.open_elsewhere(name)},
        closed=[
            each
            for each in closed
            if each.settled_at is None or each.noticed_at >= now - CLOSED_WITHIN
        ],
        carries=reports.carries(period=month, limit=_MOST_CARRIES),
        months=[
            ReportedTotals(month=each.label, sums=reports.sums(each))
            for each in (month, _before(month))
        ],
        now=now,
    )


def _before(month: Period) -> Period:
    return month_of(month.start - timedelta(days=1))


def _blocked(sources: HealthSources) -> dict[str, str]:
    parts = sources.reporting
    lines = [
        meter_line(each) for each in parts.provider.ensure_meters(parts.meters(), dry_run=True)
    ]
    return {
        line.meter.name: "; ".join(line.differences) or "not there: billing stripe setup"
        for line in lines
        if line.state in {MeterState.DIFFERS, MeterState.MISSING}
    }
