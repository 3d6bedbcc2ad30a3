"""Whether a provider counts what it accepted: what an hour has to show, and what follows. Pure.

Figures are integers of at most 15 digits, which a provider's double gives back exactly, so they are
compared exactly. Nothing of a bucket is in flight while it is judged: one with an open revision is
left alone, and revision n+1 is not sent before n has its answer. So what is read is never that of
an earlier revision that arrives late.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Final

from billing.reporting.revision_rules import Holder
from billing.reporting.usage_report import AT_REST, OPEN, TAKEN, AttentionCause, ReportState

FIRST_READ_BACK: Final = timedelta(minutes=15)
"""How long after its answer a figure is read back first."""
APART: Final = timedelta(minutes=15)
"""At least so long between two readings."""
LAG: Final = timedelta(hours=1)
"""How long after its answer a provider may still count otherwise."""
LATER: Final = timedelta(hours=6)
DAILY: Final = timedelta(days=1)
MAX_RESENT: Final = 3
"""How many revisions are sent because what was read differed; then it needs a person."""
assert FIRST_READ_BACK < LAG < LATER < DAILY  # noqa: S101 - relations between constants
assert APART <= LAG - FIRST_READ_BACK  # noqa: S101 - as above

SHORTEST_WAIT: Final = timedelta(minutes=5)
_OF_ITS_AGE: Final = 4
"""After no answer the next reading is a quarter of the figure's age away: waits grow by themselves,
and no count of them has to be kept."""


@dataclass(frozen=True, slots=True)
class Group:
    """The hours that one request reads: a customer's SKU on a UTC day, at one holder."""

    customer: str
    sku: str
    holder: Holder
    day: date


class ReadBackFinding(StrEnum):
    """The finding about a report that was read back."""

    CONFIRM = "confirm"
    """The provider counts it."""
    WAIT = "wait"
    """Not yet, or a reading does not decide it: read again."""
    RESEND = "resend"
    """It is counted otherwise, and sending it again can only make that right."""
    PARK = "park"
    """It is counted otherwise, and a person has to look."""
    CLEAR = "clear"
    """It never arrived: no longer outcome_unknown, and parked as it is."""
    CLOSE = "close"
    """It is counted otherwise, and the provider's invoice is final: what that bills decides."""
    GONE = "gone"
    """Its customer or meter is not there: nothing of it counts."""
    LEAVE = "leave"
    """Its own time has not come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A report as it stands. ``hour`` is UTC; ``held_microcredits`` is what it tells its holder.

    ``answered_at`` is the last answer or, where none ever came, the first sending.
    ``period_closed``: the provider's invoice for this hour is final.
    """

    id: int
    hour: datetime
    revision: int
    holder: Holder
    value: int
    held_microcredits: int
    state: ReportState
    cause: str
    outcome_unknown: bool
    answered_at: datetime
    confirm_at: datetime | None
    confirmed_at: datetime | None
    readings: int
    resent: int
    period_closed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Awaited:
    """A report that is to be read back, and what else is known of its hour.

    ``without`` is what the hour shows if this report never arrived; None: nothing. ``older`` are
    earlier reports of this holder that are accepted and not confirmed. ``last`` is the bucket's
    last one, often this one.
    """

    entry: Entry
    without: int | None
    older: tuple[Entry, ...]
    last: Entry

    @property
    def is_last(self) -> bool:
        """Whether it is its bucket's last revision."""
        return self.entry.id == self.last.id

    @property
    def behind_rest(self) -> bool:
        """Whether the bucket's last revision is another one, with which all is well."""
        last = self.last
        at_rest = last.state in TAKEN or (not last.outcome_unknown and last.cause in AT_REST)
        return at_rest and not self.is_last

    @property
    def may_follow(self) -> bool:
        """Whether this figure may be told in a next revision.

        Not where the last one waits for something itself, or another provider gets usage now.
        """
        here = self.last.holder.provider == self.entry.holder.provider
        return self.is_last or (self.behind_rest and here)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A finding about a report; ``readings`` and ``confirm_at`` are its values afterwards.

    ``readings`` counts, of a report that was accepted, those that did not agree; of one whose
    outcome is unknown the last ones in a row by which it never arrived.
    """

    finding: ReadBackFinding
    readings: int
    confirm_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Decided:
    """A report and what a reading makes of it; ``cause`` and ``detail`` say why it is parked."""

    one: Awaited
    judgement: Judgement
    cause: str = ""
    detail: str = ""


def awaited(entries: Iterable[Entry], holder: Holder) -> list[Awaited]:
    """The reports of a holder that are to be read back, by hour.

    Of each hour these are the last one that it accepted, unless it is confirmed, and the bucket's
    last one, where it is parked and may have arrived.

    Args:
        entries: Every report of a customer's SKU for some hours, whoever holds them.
        holder: Whose figures are read.
    """
    by_hour: defaultdict[datetime, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_hour[entry.hour].append(entry)
    found: list[Awaited] = []
    for hour in sorted(by_hour):
        bucket = sorted(by_hour[hour], key=lambda entry: entry.revision)
        if not any(entry.state in OPEN for entry in bucket):
            found += _of_bucket(bucket, holder)
    return found


def _of_bucket(bucket: Sequence[Entry], holder: Holder) -> list[Awaited]:
    taken = [e for e in bucket if e.holder == holder and e.state in TAKEN]
    accepted = [e for e in taken if e.state is ReportState.ACCEPTED]
    last = bucket[-1]
    found: list[Awaited] = []

    def add(entry: Entry, before: Sequence[Entry]) -> None:
        found.append(
            Awaited(
                entry=entry,
                without=before[-1].value if before else None,
                older=tuple(each for each in accepted if each.id != entry.id),
                last=last,
            )
        )

    if taken and taken[-1].state is ReportState.ACCEPTED:
        add(taken[-1], taken[:-1])
    if last.holder == holder and last.state is ReportState.NEEDS_ATTENTION and last.outcome_unknown:
        add(last, taken)
    return found


def judge(one: Awaited, read: int | None, now: datetime, *, oldest: datetime | None) -> Judgement:
    """Judge a report by the figure that its hour shows.

    Args:
        one: The report.
        read: The hour's figure; None where the provider has none. That is not a figure of zero:
            it never agrees with another one, and with 0 only once the provider has had its time.
        now: The time of the reading.
        oldest: Hours before this one are not taken any more; None: any age.
    """
    entry = one.entry
    age = now - entry.answered_at
    due = entry.confirm_at is not None and entry.confirm_at <= now
    early = not due and age < FIRST_READ_BACK
    agrees = read == entry.value or (entry.value == 0 and read is None and age >= LAG)
    if agrees and not early:
        return Judgement(ReadBackFinding.CONFIRM, entry.readings)
    if not due:
        return Judgement(ReadBackFinding.LEAVE, entry.readings, entry.confirm_at)
    if entry.period_closed and age >= LAG:
        return _closed(entry)
    if entry.state is ReportState.ACCEPTED:
        return _of_accepted(one, now, oldest)
    return _of_unknown(one, read, now)


def judge_gone(one: Awaited) -> Judgement:
    """Judge a report whose customer or meter the provider says is not there."""
    return (
        _closed(one.entry)
        if one.entry.period_closed
        else Judgement(ReadBackFinding.GONE, one.entry.readings)
    )


def _closed(entry: Entry) -> Judgement:
    accepted = entry.state is ReportState.ACCEPTED
    return Judgement(ReadBackFinding.CLOSE if accepted else ReadBackFinding.CLEAR, entry.readings)


def _of_accepted(one: Awaited, now: datetime, oldest: datetime | None) -> Judgement:
    """Judge an accepted report whose hour shows another figure."""
    entry = one.entry
    readings = entry.readings + 1
    again = next_read_back(entry.answered_at, now)
    if now - entry.answered_at < LAG or not one.may_follow:
        return Judgement(ReadBackFinding.WAIT, readings, again)
    takes_it = oldest is None or entry.hour >= oldest
    if takes_it and entry.resent < MAX_RESENT:
        return Judgement(ReadBackFinding.RESEND, readings)
    return Judgement(ReadBackFinding.PARK, readings, again)


def _of_unknown(one: Awaited, read: int | None, now: datetime) -> Judgement:
    """Judge a report that may have arrived and that its hour does not show.

    It never arrived if the hour twice shows just what it shows without it. Any other figure
    decides nothing; what was parked because it differs, a person decides.
    """
    entry = one.entry
    again = next_read_back(entry.answered_at, now)
    absent = (read or 0) == (one.without or 0)
    if not absent or entry.cause == AttentionCause.DIFFERS:
        return Judgement(ReadBackFinding.WAIT, 0, again)
    if entry.readings and now - entry.answered_at >= LAG:
        return Judgement(ReadBackFinding.CLEAR, entry.readings)
    return Judgement(ReadBackFinding.WAIT, entry.readings + 1, again)


def next_read_back(answered_at: datetime, now: datetime) -> datetime:
    """The time of a figure's next reading.

    15 minutes and an hour after its answer, then every six hours, and after a day daily.

    Args:
        answered_at: When the provider answered.
        now: The time of this reading, or of the answer.
    """
    age = now - answered_at
    if age < FIRST_READ_BACK:
        return answered_at + FIRST_READ_BACK
    if age < LAG:
        return max(answered_at + LAG, now + APART)
    return now + (LATER if age < DAILY else DAILY)


def after_no_answer(answered_at: datetime, now: datetime) -> datetime:
    """The time of the next try after no answer: in 5 minutes to 6 hours, by the figure's age."""
    wait = (now - answered_at) / _OF_ITS_AGE
    return now + min(max(wait, SHORTEST_WAIT), LATER)


def put_off_until(
    entries: Iterable[Entry], holder: Holder, spacing: timedelta, now: datetime
) -> datetime | None:
    """Put off a day's first readings where another one agreed not long ago.

    Only figures whose first reading is due are put off: what once did not agree, or was reported
    to be wrong, is read at its time.

    Args:
        entries: The day's.
        holder: Whose figures are read.
        spacing: How long one agreement speaks for the figures after it; zero: not at all.
        now: The time.
    """
    own = [entry for entry in entries if entry.holder == holder]
    due = [entry for entry in own if entry.confirm_at is not None and entry.confirm_at <= now]
    agreed = max((e.confirmed_at for e in own if e.confirmed_at is not None), default=None)
    if agreed is None or agreed + spacing <= now:
        return None
    first = all(
        entry.state is ReportState.ACCEPTED and not entry.readings and not entry.resent
        for entry in due
    )
    return agreed + spacing if first else None
