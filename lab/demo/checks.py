"""The invariants and the plan, checked. Pure: everything was read before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from billing.core.credits import format_credits
from billing.reconciliation.invariants import Discrepancy, DiscrepancyKind
from lab.demo.books import Books
from lab.demo.reported import Reported
from lab.demo.results import End, reasons, tally
from lab.demo.scenario import CustomerPlan
from lab.demo.submission import Ticket


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the checklist. ``violations`` are sentences; none when all is well."""

    claim: str
    evidence: str
    violations: Sequence[str] = ()

    @property
    def holds(self) -> bool:
        """Whether it is so."""
        return not self.violations


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the checks look at.

    ``ends`` by task id; ``visits`` counts what the site, the difficult host and the proxy were
    asked for, as whole URLs; ``discrepancies`` are what ``InvariantChecks.run`` found;
    ``reported`` is
    what each side has at the end.
    """

    plans: Sequence[CustomerPlan]
    tickets: Sequence[Ticket]
    ends: Mapping[str, End]
    by_customer: Mapping[str, Counter[End]]
    broken_chords: Mapping[str, int]
    books: Books
    discrepancies: Sequence[Discrepancy]
    visits: Mapping[str, int] = field(default_factory=dict)
    reported: Sequence[Reported] = ()


def invariants(evidence: Evidence) -> list[Check]:
    """Every invariant that must hold whoever the customers are."""
    return [
        *_reconciled(evidence),
        _drained(evidence.books),
        _celery_and_log(evidence),
        _denied_left_no_trace(evidence),
        _delivered_twice_billed_once(evidence),
        _reported_to_the_unit(evidence),
    ]


def as_planned(evidence: Evidence) -> Check:
    """Whether each customer was served, stopped or failed as the plan says."""
    differs: list[str] = []
    for plan in evidence.plans:
        ends = evidence.by_customer.get(plan.id, Counter())
        found = {
            "succeeded": tally(ends, "succeeded"),
            "failed": tally(ends, "failed"),
            "denied": reasons(ends, "denied"),
            "broken chords": evidence.broken_chords.get(plan.id, 0),
        }
        wanted = {
            "succeeded": plan.expected.succeeded,
            "failed": plan.expected.failed,
            "denied": {reason.value: count for reason, count in plan.expected.denied.items()},
            "broken chords": plan.expected.broken_chords,
        }
        differs += [
            f"{plan.id}: {what} {found[what]}, planned {wanted[what]}"
            for what in wanted
            if found[what] != wanted[what]
        ]
    return Check(
        "every customer was served, stopped or failed as planned",
        f"{len(evidence.plans)} customers, {len(evidence.tickets):,} tasks",
        differs,
    )


def _reconciled(evidence: Evidence) -> list[Check]:
    books = evidence.books
    granted = sum(book.granted for book in books.customers)
    held = sum(book.held_now for book in books.customers)
    available = sum(book.available for book in books.customers)
    sums = [granted, books.settled, held, available]
    claims: list[tuple[str, str, set[DiscrepancyKind], list[str]]] = [
        (
            "grants - settled - held = available, for every customer",
            "{} - {} - {} = {} credits".format(*map(format_credits, sums)),
            {DiscrepancyKind.AVAILABLE, DiscrepancyKind.GRANTED},
            [],
        ),
        (
            "settled in Redis = log = rollups, bucket by bucket",
            " = ".join(map(format_credits, (books.settled, books.logged, books.rolled_up))),
            {DiscrepancyKind.SETTLED, DiscrepancyKind.ROLLUP, DiscrepancyKind.LOST_EVENT},
            [],
        ),
        (
            "available is never negative",
            f"lowest {format_credits(min((b.available for b in books.customers), default=0))}",
            {DiscrepancyKind.NEGATIVE},
            [],
        ),
        (
            "one log row per task and line at most",
            f"{books.events:,} rows, {books.duplicates:,} duplicates",
            {DiscrepancyKind.DUPLICATE},
            _unless(books.duplicates, "rows too many"),
        ),
        (
            "no hold is open after its task ended",
            f"{books.open_holds:,} open holds",
            {DiscrepancyKind.OVERDUE_HOLD},
            _unless(books.open_holds, "holds still open"),
        ),
    ]
    return [
        Check(claim, proof, [*_of_kinds(evidence.discrepancies, kinds), *more])
        for claim, proof, kinds, more in claims
    ]


def _reported_to_the_unit(evidence: Evidence) -> Check:
    rows = evidence.reported
    sums = [
        sum(row.logged for row in rows),
        sum(row.rolled_up for row in rows),
        sum(row.reported for row in rows),
        sum(row.confirmed for row in rows),
    ]
    return Check(
        "log = rollups = reported = confirmed at Stripe, per customer and SKU",
        " = ".join(map(format_credits, sums)),
        [
            f"{row.customer}, {row.sku}: log {row.logged}, rollups {row.rolled_up}, "
            f"reported {row.reported}, confirmed {row.confirmed} microcredits"
            for row in rows
            if not row.agrees
        ],
    )


def _unless(count: int, what: str) -> list[str]:
    """A violation, unless there are none."""
    return [f"{count:,} {what}"] if count else []


def _of_kinds(discrepancies: Iterable[Discrepancy], kinds: set[DiscrepancyKind]) -> list[str]:
    return [
        f"{found.customer}: {found.kind}: expected {found.expected}, found {found.found} "
        f"({found.detail})"
        for found in discrepancies
        if found.kind in kinds
    ]


def _drained(books: Books) -> Check:
    return Check(
        "nothing is left on the way",
        f"outbox {books.outbox:,}, dead letters {books.dead:,}",
        [
            *_unless(books.outbox, "events still in the outbox"),
            *_unless(books.dead, "dead letters: see billing dead list"),
        ],
    )


def _celery_and_log(evidence: Evidence) -> Check:
    """The two ways to learn of a task must tell the same story."""
    differs: list[str] = []
    for book in evidence.books.customers:
        ends = evidence.by_customer.get(book.customer, Counter())
        for outcome in ("succeeded", "failed", "denied"):
            told, logged = tally(ends, outcome), book.lines(outcome)
            if told != logged:
                differs.append(f"{book.customer}: {told} {outcome} in Celery, {logged} in the log")
    return Check(
        "what Celery says of every task is what the log has",
        f"{len(evidence.tickets):,} tasks, {evidence.books.events:,} rows",
        differs,
    )


def _denied_left_no_trace(evidence: Evidence) -> Check:
    """The log has nothing but the refusal, and nobody was asked for any of their pages."""
    denied = [
        ticket for ticket in evidence.tickets if evidence.ends[ticket.task_id].outcome == "denied"
    ]
    urls = [url for ticket in denied for url in ticket.call.urls]
    found = _of_kinds(evidence.discrepancies, {DiscrepancyKind.DENIED_BUT_RAN})
    found += [f"{url} was fetched for a denied task" for url in urls if evidence.visits.get(url)]
    return Check(
        "a denied task left no trace of its body having run",
        f"{len(denied):,} denied, 0 of their {len(urls):,} pages asked for",
        found,
    )


def _delivered_twice_billed_once(evidence: Evidence) -> Check:
    """Both deliveries ran, or else that there is one row would show nothing."""
    twice = [ticket for ticket in evidence.tickets if ticket.deliveries > 1]
    ran_once = [
        f"{url} was asked for {evidence.visits.get(url, 0)} times, not {ticket.deliveries}"
        for ticket in twice
        for url in ticket.call.urls
        if evidence.visits.get(url, 0) != ticket.deliveries
    ]
    return Check(
        "a message delivered twice runs twice and is billed once",
        f"{len(twice):,} such tasks, {evidence.books.duplicates:,} duplicates in the log",
        ran_once,
    )
