"""Read back what a provider has accepted: confirmed, read again later, sent again, or parked.

Accepted is not confirmed: a provider may take a figure and drop it later, and somebody may change
it there. One request reads a day of one customer and SKU. Nothing is decided by a missing answer:
then the reading is put off, and the age of the oldest unconfirmed report shows it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from billing.core.clock import Clock
from billing.core.failpoints import reach
from billing.providers.port import (
    VERDICTS,
    Provider,
    ProviderCause,
    ProviderUnavailable,
    ProviderVerdict,
)
from billing.reporting.confirmation_rules import (
    Awaited,
    Decided,
    Entry,
    Group,
    Judgement,
    ReadBackFinding,
    after_no_answer,
    awaited,
    judge,
    judge_gone,
    put_off_until,
)
from billing.reporting.confirmations import ConfirmationStore, Cursor
from billing.reporting.rate_limiter import TokenBucket
from billing.reporting.usage_report import AttentionCause

MISSING: Final = frozenset({ProviderCause.CUSTOMER_MISSING, ProviderCause.METER_MISSING})
"""Definite answers: what was told there counts nowhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadBackPace:
    """The limits of reading back.

    ``rate_per_second`` and ``burst`` are requests; ``batch`` reports are looked up at once. After
    ``silences`` requests in a row without an answer the run ends. ``spacing``: so long after a
    day's figures agreed, the first reading of the next ones waits; a provider may allow only so
    many reads a month.
    """

    rate_per_second: float = 5.0
    burst: int = 5
    batch: int = 500
    silences: int = 3
    spacing: timedelta = timedelta(0)


@dataclass(slots=True)
class ReadBackResult:
    """Counts of a run; all but ``requests`` and ``unanswered`` count reports.

    ``resent`` have a next revision that waits to be sent. ``cleared`` turned out never to have
    arrived. ``closed`` differ in a period whose invoice is final. ``unanswered`` are requests.
    ``stopped`` says why the run ended early, empty where it did not.
    """

    requests: int = 0
    confirmed: int = 0
    waiting: int = 0
    resent: int = 0
    parked: int = 0
    cleared: int = 0
    closed: int = 0
    unanswered: int = 0
    stopped: str = ""


class ReadBack:
    """Reads back what is due. Any number may run at once, in any number of processes.

    Args:
        confirmations: What is to be read back.
        provider: Who is asked.
        clock: The time.
        environment: Of identifiers; see ``usage_report.identifier_of``.
        pace: Limits.
        monotonic: Seconds that only grow.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self,
        confirmations: ConfirmationStore,
        provider: Provider,
        clock: Clock,
        *,
        environment: str,
        pace: ReadBackPace | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._confirmations = confirmations
        self._provider = provider
        self._clock = clock
        self._environment = environment
        self._pace = pace or ReadBackPace()
        self._tokens = TokenBucket(
            self._pace.rate_per_second, self._pace.burst, monotonic=monotonic, sleep=sleep
        )

    def confirm(self, *, until: datetime | None = None, limit: int | None = None) -> ReadBackResult:
        """Read back what is due, what has waited longest first.

        Args:
            until: Begin no further request after this instant.
            limit: The most requests.

        Raises:
            sqlalchemy.exc.DBAPIError: PostgreSQL did not answer. What was read and not noted is
                read again.
        """
        done = ReadBackResult()
        now = self._clock.now()
        self._confirmations.prepare(self._provider.name, now)
        silences = 0
        after: Cursor | None = Cursor()
        while after is not None:
            page = self._confirmations.due(
                self._provider.name, now=now, after=after, limit=self._pace.batch
            )
            for group in page.groups:
                if limit is not None and done.requests >= limit:
                    return done
                if until is not None and self._clock.now() >= until:
                    return done
                answered = self._read(group, done)
                silences = 0 if answered else silences + 1
                if silences >= self._pace.silences and not done.stopped:
                    done.stopped = f"no answer to {silences} requests in a row"
                if done.stopped:
                    return done
            after = page.after
        return done

    def _read(self, group: Group, done: ReadBackResult) -> bool:
        """Read one day and note what comes of it; False where there was no answer."""
        entries = self._confirmations.entries(group.customer, group.sku, group.day)
        waiting = awaited(entries, group.holder)
        if not waiting or self._put_off(group, entries, waiting, done):
            return True
        self._tokens.take()
        done.requests += 1
        try:
            read = self._provider.read_back(
                group.holder.customer_ref or "", group.holder.meter, group.day
            )
        except ProviderUnavailable as error:
            return self._unanswered(group, waiting, error, done)
        reach("report.after_reading")
        self._note(group, self._judged(waiting, read), done)
        return True

    def _judged(self, waiting: Sequence[Awaited], read: Mapping[datetime, int]) -> list[Decided]:
        now = self._clock.now()
        max_age = self._provider.max_age
        oldest = None if max_age is None else now - max_age
        found = []
        for one in waiting:
            shown = read.get(one.entry.hour)
            judgement = judge(one, shown, now, oldest=oldest)
            says = "nothing" if shown is None else shown
            detail = f"reported {one.entry.value}, read back {says}"
            found.append(Decided(one, judgement, AttentionCause.DIFFERS.value, detail))
        return found

    def _put_off(
        self,
        group: Group,
        entries: Sequence[Entry],
        waiting: Sequence[Awaited],
        done: ReadBackResult,
    ) -> bool:
        now = self._clock.now()
        until = put_off_until(entries, group.holder, self._pace.spacing, now)
        if until is not None:
            self._note(group, _later(waiting, now, lambda _: until), done)
        return until is not None

    def _unanswered(
        self,
        group: Group,
        waiting: Sequence[Awaited],
        error: ProviderUnavailable,
        done: ReadBackResult,
    ) -> bool:
        """Deal with what came instead of figures; False where it was no answer at all."""
        now = self._clock.now()
        cause = error.cause
        if cause in MISSING:
            gone = [Decided(one, judge_gone(one), cause.value, str(error)) for one in waiting]
            self._note(group, gone, done)
            return True
        done.unanswered += 1
        verdict = ProviderVerdict.UNKNOWN if cause is None else VERDICTS[cause]
        if verdict is ProviderVerdict.STOPPED:
            done.stopped = str(error)
            return False
        self._note(
            group, _later(waiting, now, lambda entry: after_no_answer(entry.answered_at, now)), done
        )
        # A definite answer that is of no use says nothing about the next request.
        return verdict is not ProviderVerdict.UNKNOWN

    def _note(self, group: Group, decided: Sequence[Decided], done: ReadBackResult) -> None:
        noted = self._confirmations.apply(
            group, decided, environment=self._environment, now=self._clock.now()
        )
        done.confirmed += noted[ReadBackFinding.CONFIRM]
        done.waiting += noted[ReadBackFinding.WAIT]
        done.resent += noted[ReadBackFinding.RESEND]
        done.parked += noted[ReadBackFinding.PARK] + noted[ReadBackFinding.GONE]
        done.cleared += noted[ReadBackFinding.CLEAR]
        done.closed += noted[ReadBackFinding.CLOSE]


def _later(
    waiting: Sequence[Awaited], now: datetime, when: Callable[[Entry], datetime]
) -> list[Decided]:
    """Put off what is due; nothing else of it changes."""
    return [
        Decided(one, Judgement(ReadBackFinding.WAIT, one.entry.readings, when(one.entry)))
        for one in waiting
        if one.entry.confirm_at is not None and one.entry.confirm_at <= now
    ]
