"""Where usage is between the log and the provider: what ``billing report status`` gathers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from billing.container import System
from billing.core.periods import Period, month_of
from billing.health.doctor_reporting import HARMLESS
from billing.health.doctor_reporting_probe import examine_reporting
from billing.health.rules import Finding, Level
from billing.reporting.closed_periods import Seal
from billing.reporting.listing import CarryRow, Count, Parked
from billing.reporting.report_store import Sums
from billing.reporting.setup import MeterState, meter_line
from billing.reporting.usage_report import State

SEALS_OF: Final = timedelta(days=45)
_CARRIES: Final = 10_000
_SEALED: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """A month's invariant: log = accepted + open + parked + unclaimed + carried."""

    month: str
    sums: Sequence[Sums]

    @property
    def wrong(self) -> list[Sums]:
        """What does not add up."""
        return [each for each in self.sums if each.off_by]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Where usage is.

    ``since``: since when the report waits that waits longest for its answer or confirmation.
    ``oldest_open``: the hour of the oldest report without its answer. ``blocked``: meters that are
    not as they have to be, and why; None where the provider was not asked. ``owed``: former
    providers with reports that have no answer, and whether they can be asked for it.
    """

    provider: str
    findings: Sequence[Finding]
    counts: Mapping[State, Count]
    since: datetime | None
    oldest_open: datetime | None
    parked: Sequence[Parked]
    blocked: Mapping[str, str] | None
    owed: Mapping[str, bool]
    seals: Sequence[Seal]
    carries: Sequence[CarryRow]
    books: Sequence[Books]
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


def status_of(system: System, *, check: bool) -> Status:
    """Gather everything; asks the provider only with ``check``.

    Raises:
        ProviderUnavailable: With ``check``, it did not answer.
        ConfigurationError: With ``check``, it cannot be asked as the settings are.
    """
    name = system.settings.provider_name
    now = system.clock.now()
    reports = system.reporting.reports
    month = month_of(now)
    with system.engine.connect() as connection:
        findings = list(examine_reporting(system, connection))
    seals = reports.seals.list(name, _SEALED)
    usable = {each.name for each in system.reporting.former()}
    return Status(
        provider=name,
        findings=findings,
        counts=reports.counts(name),
        since=reports.oldest_unconfirmed(name),
        oldest_open=reports.oldest_open(name),
        parked=reports.parked_by_cause(name),
        blocked=_blocked(system) if check else None,
        owed={each: each in usable for each in reports.open_elsewhere(name)},
        seals=[
            each for each in seals if each.settled_at is None or each.noticed_at >= now - SEALS_OF
        ],
        carries=reports.carries(period=month, limit=_CARRIES),
        books=[
            Books(month=each.label, sums=reports.sums(each)) for each in (month, _before(month))
        ],
        now=now,
    )


def _before(month: Period) -> Period:
    return month_of(month.start - timedelta(days=1))


def _blocked(system: System) -> dict[str, str]:
    checks = system.reporting.provider.ensure_meters(system.reporting.meters(), dry_run=True)
    lines = [meter_line(each) for each in checks]
    return {
        line.meter.name: "; ".join(line.differences) or "not there: billing stripe setup"
        for line in lines
        if line.state in {MeterState.DIFFERS, MeterState.MISSING}
    }
