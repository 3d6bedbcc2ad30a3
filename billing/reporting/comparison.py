"""Comparison of a provider's live figures with the accepted ones and with the log."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from billing.core.clock import Clock
from billing.core.periods import Period
from billing.providers.port import VERDICTS, Provider, ProviderUnavailable, ProviderVerdict
from billing.reporting.confirmation_rules import LAG, Entry
from billing.reporting.confirmations import ConfirmationStore
from billing.reporting.destination import Destination
from billing.reporting.rate_limiter import TokenBucket
from billing.reporting.read_back import ReadBackPace
from billing.reporting.revision_rules import Holder
from billing.reporting.usage_report import TAKEN

# What is to be reported of a customer's days: its usage, less what was carried out of their hours,
# and what was carried into them; and the days that anything was reported of.
_DAYS: Final = sa.text(
    """
    SELECT sku_id, CAST(hour AT TIME ZONE 'UTC' AS date) AS day, sum(amount) AS total
    FROM (
        SELECT sku_id, hour, amount_microcredits AS amount, false AS reported FROM usage_hourly
        WHERE customer_id = :customer AND hour >= :start AND hour < :end
        UNION ALL
        SELECT sku_id, from_hour, -amount_microcredits, false FROM report_carries
        WHERE customer_id = :customer AND from_hour >= :start AND from_hour < :end
        UNION ALL
        SELECT sku_id, to_hour, amount_microcredits, false FROM report_carries
        WHERE customer_id = :customer AND to_hour >= :start AND to_hour < :end
        UNION ALL
        SELECT sku_id, hour, 0, true FROM usage_reports
        WHERE customer_id = :customer AND hour >= :start AND hour < :end
            AND provider = :provider AND state IN ('accepted', 'confirmed')
    ) AS part
    GROUP BY 1, 2 HAVING sum(amount) <> 0 OR bool_or(reported)
    ORDER BY 1, 2
    """
)

_CUSTOMERS: Final = """
    SELECT id, {ref} AS customer_ref FROM customers
    WHERE CAST(:customer AS text) IS NULL OR id = CAST(:customer AS text) ORDER BY id
"""

_CUSTOMERS_BY: Final = {
    column: sa.text(_CUSTOMERS.format(ref=column)) for column in ("id", "stripe_customer_id")
}


NOT_LINKED: Final = "the provider does not know this customer: nothing can have been reported"
NO_METER: Final = "the SKU has no meter: nothing can have been reported"


@dataclass(frozen=True, slots=True, kw_only=True)
class HourDiffers:
    """An hour whose figures differ, in the meter's unit; None: no figure at all.

    ``final``: the provider's invoice for it is, and what that billed is in the books.
    """

    hour: datetime
    accepted: int | None
    read: int | None
    final: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderDay:
    """A customer's SKU on one UTC day, at one place where a provider counts it.

    ``logged_microcredits`` is what this place should have come to: the log with its adjustments,
    less what other places have. ``accepted_microcredits`` is what was accepted of it, and
    ``accepted`` the same in the meter's unit, in which ``read`` is what the provider counts; None
    where it gave no figures, and then ``problem`` says why. ``hours`` are those that differ, though
    their sum may not. ``settling``: one of them was answered so lately that it may still change.
    """

    customer: str
    sku: str
    day: date
    meter: str
    customer_ref: str
    logged_microcredits: int
    accepted_microcredits: int
    accepted: int
    read: int | None
    hours: Sequence[HourDiffers] = ()
    settling: bool = False
    problem: str = ""

    @property
    def difference(self) -> int:
        """The provider's figure less the accepted one; 0 if unread."""
        return 0 if self.read is None else self.read - self.accepted

    @property
    def unreported_microcredits(self) -> int:
        """The logged amount not accepted yet: open, needing attention, or not planned yet."""
        return self.logged_microcredits - self.accepted_microcredits

    @property
    def differs(self) -> bool:
        """Whether figures differ for good: no time and no final invoice settles it."""
        return not self.settling and not all(each.final for each in self.hours)

    def as_dict(self) -> dict[str, object]:
        """JSON-friendly but for instants and days."""
        return asdict(self) | {"difference": self.difference}


class ProviderComparison:
    """Compares a provider's figures with the accepted ones and with the log.

    Args:
        engine: PostgreSQL; only read.
        provider: Who is asked.
        destination: Where it counts what nothing was reported of.
        clock: The time.
        pace: Limits; of it the rate, the burst and the silences.
        monotonic: Seconds that only grow.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self,
        engine: Engine,
        provider: Provider,
        destination: Destination,
        clock: Clock,
        *,
        pace: ReadBackPace | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._engine = engine
        self._confirmations = ConfirmationStore(engine)
        self._provider = provider
        self._destination = destination
        self._clock = clock
        self._pace = pace or ReadBackPace()
        self._tokens = TokenBucket(
            self._pace.rate_per_second, self._pace.burst, monotonic=monotonic, sleep=sleep
        )

    def compare(self, period: Period, *, customer: str | None = None) -> Iterator[ProviderDay]:
        """Every day of a period that has usage or reports, by customer, SKU and day.

        Each day is one request, made when the row is asked for.

        Args:
            period: Whose hours are compared.
            customer: Only this one's.

        Raises:
            ProviderUnavailable: The provider refuses us, or did not answer several times in a row.
        """
        silences = 0
        for used in self._days(period, customer):
            for part in self._parts(used, period):
                day, error = self._compared(part, period)
                verdict = _verdict(error)
                silences = silences + 1 if verdict is ProviderVerdict.UNKNOWN else 0
                if error and (
                    verdict is ProviderVerdict.STOPPED or silences >= self._pace.silences
                ):
                    raise error
                yield day

    def _days(self, period: Period, customer: str | None) -> Iterator[_Used]:
        column = self._destination.customer_ids.value
        with self._engine.connect() as connection:
            found = connection.execute(_CUSTOMERS_BY[column], {"customer": customer}).all()
        for one in found:
            parameters = {
                "customer": one.id, "provider": self._provider.name,
                "start": period.start, "end": period.end,
            }  # fmt: skip
            with self._engine.connect() as connection:
                days = connection.execute(_DAYS, parameters).all()
            for day in days:
                yield _Used(one.id, one.customer_ref, day.sku_id, day.day, int(day.total))

    def _parts(self, used: _Used, period: Period) -> Iterator[_Part]:
        """The holders that count a day at this provider; where nothing was sent, the next one."""
        held: defaultdict[Holder, list[Entry]] = defaultdict(list)
        for entry in self._confirmations.entries(used.customer, used.sku, used.day):
            if entry.state in TAKEN and entry.hour in period:
                held[entry.holder].append(entry)
        accepted = {holder: _sum(entries) for holder, entries in held.items()}
        now = Holder(self._provider.name, used.customer_ref, self._meter(used.sku))
        own = sorted((each for each in accepted if each.provider == now.provider), key=str) or [now]
        # What is not reported yet is on its way to one of them.
        gets_rest = now if now in own else own[-1]
        rest = used.total - sum(accepted.values())
        for holder in own:
            part = accepted.get(holder, 0) + (rest if holder == gets_rest else 0)
            yield _Part(used, holder, tuple(held.get(holder, ())), part)

    def _meter(self, sku: str) -> str:
        try:
            return self._destination.metered(sku).meter.name
        except LookupError:
            return ""

    def _compared(
        self, part: _Part, period: Period
    ) -> tuple[ProviderDay, ProviderUnavailable | None]:
        used, holder = part.used, part.holder
        own = _by_hour(part.entries)
        accepted = {hour: taken[-1].value for hour, taken in own.items()}
        read, error, problem = self._figures(holder, used.day)
        final = {hour for hour, taken in own.items() if taken[-1].period_closed}
        differ = _differences(accepted, read, period, final) if read is not None else ()
        now = self._clock.now()
        last = [own[each.hour][-1] for each in differ if each.hour in own]
        return ProviderDay(
            customer=used.customer,
            sku=used.sku,
            day=used.day,
            meter=holder.meter,
            customer_ref=holder.customer_ref or "",
            logged_microcredits=part.logged,
            accepted_microcredits=_sum(part.entries),
            accepted=sum(accepted.values()),
            read=None if read is None else sum(v for hour, v in read.items() if hour in period),
            hours=differ,
            settling=any(now - entry.answered_at < LAG for entry in last),
            problem=problem,
        ), error

    def _figures(
        self, holder: Holder, day: date
    ) -> tuple[Mapping[datetime, int] | None, ProviderUnavailable | None, str]:
        if holder.customer_ref is None:
            return None, None, NOT_LINKED
        if not holder.meter:
            return None, None, NO_METER
        self._tokens.take()
        try:
            return self._provider.read_back(holder.customer_ref, holder.meter, day), None, ""
        except ProviderUnavailable as error:
            return None, error, str(error) or "no answer"


@dataclass(frozen=True, slots=True)
class _Used:
    """A customer's SKU on a day: who it is at the provider now, and what is to be reported."""

    customer: str
    customer_ref: str | None
    sku: str
    day: date
    total: int


@dataclass(frozen=True, slots=True)
class _Part:
    """A holder's part of a day: its accepted reports, and what they should come to."""

    used: _Used
    holder: Holder
    entries: Sequence[Entry]
    logged: int


def _verdict(error: ProviderUnavailable | None) -> ProviderVerdict | None:
    if error is None:
        return None
    return ProviderVerdict.UNKNOWN if error.cause is None else VERDICTS[error.cause]


def _by_hour(entries: Sequence[Entry]) -> dict[datetime, list[Entry]]:
    hours: defaultdict[datetime, list[Entry]] = defaultdict(list)
    for entry in sorted(entries, key=lambda each: each.revision):
        hours[entry.hour].append(entry)
    return dict(hours)


def _sum(entries: Sequence[Entry]) -> int:
    """The sum that one holder accepted, in microcredits."""
    return sum(taken[-1].held_microcredits for taken in _by_hour(entries).values())


def _differences(
    accepted: Mapping[datetime, int],
    read: Mapping[datetime, int],
    period: Period,
    final: Collection[datetime],
) -> tuple[HourDiffers, ...]:
    hours = sorted(hour for hour in accepted.keys() | read.keys() if hour in period)
    return tuple(
        HourDiffers(
            hour=hour, accepted=accepted.get(hour), read=read.get(hour), final=hour in final
        )
        for hour in hours
        if accepted.get(hour, 0) != read.get(hour, 0)
    )
