"""Clocks that are wrong, and edges of the calendar crossed under load."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from billing.container import Container
from billing.core.event_ids import lowest_id
from billing.core.periods import month_of
from billing.core.usage_event import DeadReason
from billing.usage_log.usage_queries import By
from lab.chaos.app import OffsetClock
from lab.chaos.catalogue import CUSTOMERS
from lab.chaos.drain import quiet
from lab.chaos.faults.base import Fault, Spec
from lab.chaos.ground import WORKER_A, WORKER_B, Ground
from lab.chaos.load import Load
from lab.chaos.schedule import Kind, Turn

_OFF_SECONDS: Final = 600
_BERLIN: Final = ZoneInfo("Europe/Berlin")
_AROUND: Final = timedelta(hours=2)
_ZONED: Final = [customer for customer in CUSTOMERS if customer.zone != "UTC"]


class ClocksOff(Fault):
    """The clocks of submitter and workers are ten minutes fast, or slow; those of others right."""

    def __init__(self, ground: Ground, load: Load, turn: Turn, *, seconds: int) -> None:
        super().__init__(ground, load, turn)
        self._seconds = seconds

    def inject(self) -> None:
        """Start the workers with the wrong clock; submit with it, too."""
        self._from = datetime.now(UTC)
        self._letters = 0
        self.ground.start_and_await(WORKER_A, WORKER_B, clock_offset=self._seconds)
        self.load.metered_by = timedelta(seconds=self._seconds)

    def heal(self) -> None:
        """Right clocks. What was told of the future is kept, and logged when its time has come."""
        self.load.metered_by = None
        self.ground.start_and_await(WORKER_A, WORKER_B)
        self.load.pause()
        try:
            quiet(self.ground)
            settings = self.ground.driver_settings()
            with Container(settings, clock=OffsetClock(2 * _OFF_SECONDS)) as later:
                done = later.dead_letters.replay(DeadReason.IN_THE_FUTURE, later.writer)
                self._letters = len(done)
                later.account_loader.sync_many({c for each in done for c in each.late_customers})
        finally:
            self.load.resume()

    def hits(self) -> int:
        """Fast: events of the future, kept and replayed. Slow: lines of ten minutes ago."""
        if self._seconds > 0:
            return self._letters
        now = self._from
        since, until = (lowest_id(now - timedelta(seconds=by)) for by in (_OFF_SECONDS + 5, 60))
        query = sa.text(
            "SELECT count(*) FROM usage_events WHERE id >= :since AND id < :until"
            " AND logged_at >= :now"
        )
        parameters = {"since": since, "until": until, "now": now}
        with self.ground.container.engine.connect() as connection:
            return int(connection.execute(query, parameters).scalar_one())


class Edge(Fault):
    """Usage on both sides of an edge of the calendar; afterwards days and months must add up.

    What is submitted has an ETA around the edge, which is what decides hour, day and month.
    """

    def __init__(
        self, ground: Ground, load: Load, turn: Turn, *, edge: Callable[[datetime], datetime]
    ) -> None:
        super().__init__(ground, load, turn)
        self._edge = edge(datetime.now(UTC))
        self._disagreements: list[str] = []

    def inject(self) -> None:
        """Submit around the edge."""
        self._began = time.monotonic()
        self._seconds = max(self.turn.seconds, 1.0)
        self.load.due = self._due

    def heal(self) -> None:
        """Submit as usual; compare the days of each customer when all is logged."""
        self.load.due = lambda: None
        self.load.pause()
        try:
            quiet(self.ground)
            for customer in _ZONED:
                self._disagreements += self._disagreeing(customer.id, customer.zone)
        finally:
            self.load.resume()
        if self._disagreements:
            self.ground.broken.extend(self._disagreements)

    def hits(self) -> int:
        """Lines on both sides of the edge: the smaller number."""
        counts = []
        with self.ground.container.engine.connect() as connection:
            for start, end in (
                (self._edge - _AROUND, self._edge),
                (self._edge, self._edge + _AROUND),
            ):
                query = sa.text("SELECT count(*) FROM usage_events WHERE id >= :low AND id < :end")
                bounds = {"low": lowest_id(start), "end": lowest_id(end)}
                counts.append(int(connection.execute(query, bounds).scalar_one()))
        return min(counts)

    def _due(self) -> datetime:
        """Time goes fast: from two hours before the edge to two hours after it."""
        share = min((time.monotonic() - self._began) / self._seconds, 1.0)
        return self._edge - _AROUND + 2 * _AROUND * share - timedelta(seconds=1)

    def _disagreeing(self, customer: str, zone_name: str) -> list[str]:
        """Days by the rollups against the same days summed up line by line on wall clocks."""
        zone = ZoneInfo(zone_name)
        found = []
        for around in (self._edge - _AROUND, self._edge + _AROUND):
            month = month_of(around, zone_name)
            days: dict[str, int] = {}
            query = sa.text(
                "SELECT id, amount_microcredits AS amount FROM usage_events"
                " WHERE customer_id = :customer AND id >= :low AND id < :end"
            )
            bounds = {
                "customer": customer,
                "low": lowest_id(month.start),
                "end": lowest_id(month.end),
            }
            with self.ground.container.engine.connect() as connection:
                for row in connection.execute(query, bounds):
                    at = datetime.fromtimestamp((row.id.int >> 80) / 1000, UTC).astimezone(zone)
                    label = at.date().isoformat()
                    days[label] = days.get(label, 0) + row.amount
            told = {
                row.key: row.totals.amount_microcredits
                for row in self.ground.container.usage.by(customer, month, By.DAY)
            }
            if days != told:
                found.append(f"days of {customer} in {month.label}: log {days}, told {told}")
        return found


def last_month_edge(now: datetime) -> datetime:
    """The last instant at which a month began in UTC."""
    return month_of(now).start


def last_change(now: datetime, *, forwards: bool) -> datetime:
    """The last instant at which Berlin's clocks went forwards, or backwards."""
    hour = now.replace(minute=0, second=0, microsecond=0)
    while True:
        before, after = (_offset(hour - timedelta(hours=1)), _offset(hour))
        if before != after and (after > before) is forwards:
            return hour
        hour -= timedelta(hours=1)


def _offset(instant: datetime) -> timedelta:
    return instant.astimezone(_BERLIN).utcoffset() or timedelta(0)


def _off(seconds: int) -> Callable[[Ground, Load, Turn], Fault]:
    return lambda ground, load, turn: ClocksOff(ground, load, turn, seconds=seconds)


def _edge(edge: Callable[[datetime], datetime]) -> Callable[[Ground, Load, Turn], Fault]:
    return lambda ground, load, turn: Edge(ground, load, turn, edge=edge)


def specs() -> list[Spec]:
    """Every wrong clock and every edge."""
    return [
        Spec(
            Kind(name="clocks-slow", last=True, seconds=(3.0, 20.0), quick=False),
            "the clocks of submitter and workers are ten minutes slow",
            _off(-_OFF_SECONDS),
        ),
        Spec(
            Kind(name="clocks-fast", last=True, seconds=(3.0, 20.0), quick=False),
            "the clocks of submitter and workers are ten minutes fast",
            _off(_OFF_SECONDS),
        ),
        Spec(
            Kind(name="month-edge", last=True, seconds=(4.0, 20.0), quick=False),
            "a month's edge is crossed under load",
            _edge(last_month_edge),
        ),
        Spec(
            Kind(name="daylight-saving-begins", last=True, seconds=(4.0, 20.0), quick=False),
            "the day of 23 hours is crossed under load",
            _edge(lambda now: last_change(now, forwards=True)),
        ),
        Spec(
            Kind(name="daylight-saving-ends", last=True, seconds=(4.0, 20.0), quick=False),
            "the day of 25 hours is crossed under load",
            _edge(lambda now: last_change(now, forwards=False)),
        ),
    ]
