"""Advance everything due: once, twice at the same time, or after thirty hours, with one result.

Each report is written down before it is sent and marked after. A reporter that dies in between
leaves it claimed; when the lease ends, the next one sends the same figure under the same
identifier.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from queue import Empty, SimpleQueue

from billing.core.clock import Clock
from billing.core.failpoints import reach
from billing.core.periods import hour_floor
from billing.providers.port import (
    Provider,
    ProviderCause,
    ProviderMeter,
    ProviderUnavailable,
    ProviderVerdict,
)
from billing.reporting.adjustments import too_old_before
from billing.reporting.rate_limiter import TokenBucket
from billing.reporting.report_store import Answered, Claimed, Destination, Metered, ReportStore
from billing.reporting.revision_rules import HOUR, closed_before
from billing.reporting.true_up import Difference
from billing.reporting.usage_report import ReportState, after_answer, backoff


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The limits of sending.

    ``lag``: an hour is closed so long after its end. ``lease``: above any request's time-out with
    all its retries. ``rate_per_second`` and ``burst`` are what the provider allows; ``senders``
    requests are under way at once; ``batch`` reports are claimed at once. ``confirm_after``: what
    was taken is read back so long after.
    """

    lag: timedelta = timedelta(minutes=5)
    lease: timedelta = timedelta(minutes=5)
    rate_per_second: float = 50.0
    burst: int = 10
    senders: int = 8
    batch: int = 64
    confirm_after: timedelta = timedelta(minutes=15)

    @classmethod
    def of_settings(cls, *, lag_seconds: int, rate_per_second: float, senders: int) -> Pace:
        """Make the limits of an operator's settings."""
        return cls(
            lag=timedelta(seconds=lag_seconds), rate_per_second=rate_per_second, senders=senders
        )


@dataclass(slots=True)
class Advance:
    """The result of a run.

    ``became`` counts sent reports by their state afterwards. ``stopped`` says, by provider, why
    nothing more was sent there. ``blocked`` are meters that nothing may be sent to, and why.
    ``differed`` are periods that were billed otherwise than was accepted.
    """

    planned: int = 0
    left_behind: int = 0
    became: Counter[ReportState] = field(default_factory=Counter)
    causes: Counter[ProviderCause] = field(default_factory=Counter)
    stopped: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    differed: list[Difference] = field(default_factory=list)


class ReportSender:
    """Gets usage to the provider. Any number may run at once, in any number of processes.

    Args:
        reports: The outbox.
        provider: The one that gets usage now; ``destination`` names it.
        destination: Its meters and customer ids.
        meters: Every meter that usage may go to; checked before anything is sent.
        clock: The time.
        former: Providers from before a change: what is open there is brought to its answer there.
        pace: Limits.
        jitter: 0 to 1, for the time until the next attempt.
        monotonic: Seconds that only grow.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self,
        reports: ReportStore,
        provider: Provider,
        destination: Destination,
        meters: Sequence[ProviderMeter],
        clock: Clock,
        *,
        former: Sequence[Provider] = (),
        pace: Pace | None = None,
        jitter: Callable[[], float] = random.random,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._reports = reports
        self._provider = provider
        self._destination = destination
        self._meters = meters
        self._clock = clock
        self._former = former
        self._pace = pace or Pace()
        self._jitter = jitter
        self._tokens = {
            name: TokenBucket(
                self._pace.rate_per_second, self._pace.burst, monotonic=monotonic, sleep=sleep
            )
            for name in (provider.name, *(other.name for other in former))
        }

    def advance(
        self,
        *,
        until: datetime | None = None,
        up_to_now: bool = False,
        into: Advance | None = None,
    ) -> Advance:
        """Send what is open, true up closed periods, write down what is due, send that.

        Args:
            until: Begin no further batch after this instant.
            up_to_now: Tell the hours that are not closed yet as they stand, the one under way too;
                they are revised later. For a customer who leaves.
            into: Counts are added to this as the run goes, so that a run that is broken off has
                them too.

        Raises:
            sqlalchemy.exc.DBAPIError: PostgreSQL did not answer. What was sent stays claimed, and
                is sent again when its lease has ended.
        """
        done = Advance() if into is None else into
        done.left_behind = self._reports.recover(self._clock.now())
        # What is open first: a bucket with an open revision gets no next one.
        for provider in (*self._former, self._provider):
            self._drain(provider, done, until)
        now = self._clock.now()
        done.differed.extend(self._reports.closed_periods.true_up(None, self._counted, now))
        closed = hour_floor(now) + HOUR if up_to_now else closed_before(now, self._pace.lag)
        done.planned = self._reports.plan(self._destination, until=closed, now=now)
        reach("report.after_plan")
        if done.planned and self._provider.name not in done.stopped:
            self._drain(self._provider, done, until)
        return done

    def _counted(self, meter: str) -> Metered | None:
        """The SKU and scale of a meter by its name, which is the same at every provider."""
        for one in self._meters:
            if one.name == meter:
                return self._destination.metered(one.sku)
        return None

    def _drain(self, provider: Provider, done: Advance, until: datetime | None) -> None:
        blocked = self._blocked(provider, done)
        if provider.name in done.stopped:
            return
        stop = threading.Event()
        after = ""
        with ThreadPoolExecutor(self._pace.senders) as pool:
            while not stop.is_set() and (until is None or self._clock.now() < until):
                batch = self._reports.claim(
                    provider.name,
                    now=self._clock.now(),
                    lease=self._pace.lease,
                    limit=self._pace.batch,
                    after=after,
                    blocked=blocked,
                    known=self._known(provider),
                    too_old=too_old_before(self._clock.now(), self._max_age(provider)),
                )
                reach("report.after_claim")
                if not batch and not after:
                    return
                after = batch[-1].customer if len(batch) == self._pace.batch else ""
                self._send_all(provider, batch, done, stop, pool)

    def _known(self, provider: Provider) -> list[str] | None:
        """The meters that were checked; None where none were, as of a former provider."""
        if provider is not self._provider or not self._meters:
            return None
        return [meter.name for meter in self._meters]

    def _max_age(self, provider: Provider) -> timedelta | None:
        current = provider is self._provider
        return self._destination.max_age if current else provider.max_age

    def _blocked(self, provider: Provider, done: Advance) -> list[str]:
        """Meters that are missing or made otherwise; asked before every drain."""
        if provider is not self._provider:
            return []
        try:
            checks = provider.ensure_meters(self._meters, dry_run=True)
        except ProviderUnavailable as error:
            done.stopped[provider.name] = str(error) or "no answer about its meters"
            return []
        for check in checks:
            if check.differences:
                done.blocked[check.meter.name] = "; ".join(check.differences)
            elif not check.provider_id:
                done.blocked[check.meter.name] = "not there; set the provider up first"
        return sorted(done.blocked)

    def _send_all(
        self,
        provider: Provider,
        batch: Sequence[Claimed],
        done: Advance,
        stop: threading.Event,
        pool: ThreadPoolExecutor,
    ) -> None:
        def send(claimed: Claimed) -> Answered | None:
            return None if stop.is_set() else self._send(provider, claimed, stop)

        if self._pace.senders == 1:
            groups: Iterable[list[Answered | None]] = ([send(claimed)] for claimed in batch)
        else:
            groups = _finished(pool, send, batch)
        sent = set()
        for group in groups:
            answered = [one for one in group if one is not None]
            # What has come meanwhile is noted together: a commit waits for the disk.
            self._reports.answer_all(answered)
            for one in answered:
                reach("report.after_answer")
                sent.add(one.claimed.id)
                self._count(provider, one, done, stop)
        self._reports.release([claimed for claimed in batch if claimed.id not in sent])

    def _count(
        self, provider: Provider, one: Answered, done: Advance, stop: threading.Event
    ) -> None:
        state, cause = one.outcome.state, one.answer.cause
        done.became[state] += 1
        done.causes[cause] += 1
        if stop.is_set() and state in (ReportState.PENDING, ReportState.UNKNOWN):
            done.stopped.setdefault(provider.name, f"{cause}: {one.answer.detail}")

    def _send(self, provider: Provider, claimed: Claimed, stop: threading.Event) -> Answered:
        self._tokens[provider.name].take()
        reach("report.before_send")
        answer = provider.report_usage(claimed.report)
        reach("report.after_send")
        if answer.verdict is ProviderVerdict.STOPPED:
            stop.set()
        outcome = after_answer(answer, outcome_unknown=claimed.outcome_unknown)
        now = self._clock.now()
        wait = outcome.state is ReportState.UNKNOWN
        next_at = now + backoff(claimed.attempts, self._jitter()) if wait else now
        return Answered(claimed, outcome, answer, now, next_at, now + self._pace.confirm_after)


def _finished(
    pool: ThreadPoolExecutor, send: Callable[[Claimed], Answered | None], batch: Sequence[Claimed]
) -> Iterator[list[Answered | None]]:
    """Give the senders' results as they come: at least one at a time, and all that is there.

    What a sender raised comes out once everybody else's answers have been given.
    """
    finished: SimpleQueue[Answered | BaseException | None] = SimpleQueue()

    def one(claimed: Claimed) -> None:
        try:
            finished.put(send(claimed))
        except BaseException as error:  # noqa: BLE001 - raised by the reader
            finished.put(error)

    for claimed in batch:
        pool.submit(one, claimed)
    left, raised = len(batch), None
    while left:
        group = [finished.get()]
        with suppress(Empty):
            while True:
                group.append(finished.get_nowait())
        left -= len(group)
        raised = next((each for each in group if isinstance(each, BaseException)), raised)
        yield [each for each in group if not isinstance(each, BaseException)]
    if raised is not None:
        raise raised
