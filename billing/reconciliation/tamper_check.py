"""A check that rows are as they were logged: nothing is repaired from tampered lines.

The rollups of an hour whose rows were changed, removed or added behind the application's back may
well be right, and a row that was removed was counted once already.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy.engine import Engine

from billing.audit.month_rows import LiveMonth, snapshots
from billing.audit.verification_report import FindingKind, VerifyFinding
from billing.audit.verifier import Verifier
from billing.core.clock import Clock, from_ms
from billing.core.periods import Period, hour_floor, month_of
from billing.core.usage_event import UsageEvent
from billing.postgres.partition_detaching import is_attached


class TamperCheck:
    """Checks single hours of the log against their seals and manifests.

    Args:
        engine: PostgreSQL; only read.
        clock: The time.
    """

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._verifier = Verifier(engine, lambda period: LiveMonth(period, snapshots(engine)))

    def tampered(self, hour: datetime) -> list[VerifyFinding]:
        """Find the rows of an hour that are not as logged; none of a month that leaves the log."""
        period = Period("hour", hour, hour + timedelta(hours=1))
        found = [
            each
            for each in self._verifier.month(period, self._clock.now())
            if each.kind is not FindingKind.UNSEALED
        ]
        return found if found and self._is_here(hour) else []

    def never_logged(self, events: Sequence[UsageEvent]) -> list[UsageEvent]:
        """Keep the events that no batch has logged; the others were logged and removed since."""
        removed = {
            finding.event_id
            for hour in {_hour_of(event) for event in events}
            for finding in self.tampered(hour)
            if finding.kind is FindingKind.REMOVED
        }
        if None in removed:
            # More than are named: any of them may be among those.
            return []
        return [event for event in events if event.id not in removed]

    def _is_here(self, hour: datetime) -> bool:
        with self._engine.connect() as connection:
            return is_attached(connection, month_of(hour))


def _hour_of(event: UsageEvent) -> datetime:
    return hour_floor(from_ms(event.id.int >> 80))


def named(findings: Sequence[VerifyFinding]) -> str:
    """Name the first three findings, for people."""
    return ", ".join(f"{each.kind.value} {each.event_id or ''}".strip() for each in findings[:3])
