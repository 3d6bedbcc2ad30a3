"""After the load: wait until nothing is on its way, then collect what the checker needs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import orjson
import sqlalchemy as sa

from billing.core.credit_lease import LEASE_PREFIX
from billing.core.periods import Period
from billing.reconciliation.invariants import Discrepancy, DiscrepancyKind
from billing.transport.lease_wal import SUFFIX
from billing.transport.segment_files import UNREADABLE_SUFFIX
from lab.chaos import truth
from lab.chaos.catalogue import PRICES
from lab.chaos.checker import Evidence, Letter, Row
from lab.chaos.errors import ChaosError
from lab.chaos.ground import HOLD_TTL_SECONDS, NODES, Ground
from lab.chaos.truth import Word

_QUIET_SECONDS: Final = 90.0
_HOLDS_SECONDS: Final = HOLD_TTL_SECONDS + 30.0
_LEASES_SECONDS: Final = 10.0
"""Two windows, a tick, the relay's second: and room for a busy machine. A hold lasts far longer."""
_STABLE_SECONDS: Final = 1.5
_POLL_SECONDS: Final = 0.1
_SWEPT_AT_ONCE: Final = 500
_REPORT_RUNS: Final = 20
_TRIFLES: Final = frozenset({Word.ENDED, Word.USED})
_TAIL_KINDS: Final = frozenset(
    {DiscrepancyKind.SETTLED, DiscrepancyKind.AVAILABLE, DiscrepancyKind.NEGATIVE}
)
"""What a Redis that lost its newest second may disagree in until the balance check's repair."""


@dataclass(slots=True)
class Collected:
    """What a run left, and what had to be repaired before the books agreed."""

    evidence: Evidence
    tasks_run: int
    bodies_run: int
    rows: int
    denials: int
    leased_runs: int
    letters: Counter[str]
    repaired: Counter[str] = field(default_factory=Counter)
    drain_seconds: float = 0.0


def quiet(ground: Ground, seconds: float = _QUIET_SECONDS) -> None:
    """Wait until queues, outbox, spools and slips are empty and the log stands still.

    Raises:
        ChaosError: They are not, in time; says what is left.
    """
    deadline = time.monotonic() + seconds
    since, last = time.monotonic(), -1
    queued: dict[str, int] = {}
    while True:
        waiting = _waiting(ground)
        rows = ground.log_rows()
        if rows != last or any(waiting.values()):
            since, last = time.monotonic(), rows
        elif time.monotonic() - since > _STABLE_SECONDS:
            if not (queued := _queued(ground)):
                return
            since = time.monotonic()
        if time.monotonic() > deadline:
            told = f"{waiting | queued}, {rows} rows"
            raise ChaosError(f"not drained within {seconds:g} s: {told}")
        time.sleep(_POLL_SECONDS)


def _waiting(ground: Ground) -> dict[str, int]:
    try:
        outbox = ground.container.outbox.length()
    except Exception:  # noqa: BLE001 - Redis is just coming back
        outbox = -1
    spooled = sum(
        len(list((ground.spool_of(node) / "spool").glob("*.jsonl"))) for node in (*NODES, "driver")
    )
    return {"outbox": outbox, "spool": spooled, "slips": len(_segments(ground))}


def _segments(ground: Ground, suffix: str = SUFFIX) -> list[Path]:
    """Files of slips, of living processes and of dead ones; idle ones have none."""
    nodes = (*NODES, "driver")
    return [path for node in nodes for path in (ground.spool_of(node) / "slips").glob(f"*{suffix}")]


def _queued(ground: Ground) -> dict[str, int]:
    """Messages of both queues, those included that somebody holds unacknowledged."""
    told = ground.servers.rabbitmqctl("list_queues", "-q", "--no-table-headers", "name", "messages")
    pairs = (line.split() for line in told.splitlines() if line.startswith("chaos."))
    return {name: int(count) for name, count in pairs if int(count)}


def collect(ground: Ground, sent: Sequence[str], *, tail_lost: bool) -> Collected:
    """Wait for the end of everything, repair what a lost tail of Redis left, and read all sides.

    Args:
        ground: Healed, with all programs running.
        sent: Ids of tasks whose submission was confirmed.
        tail_lost: Whether a fault took Redis's newest data: only then may books disagree at first.
    """
    began = time.monotonic()
    quiet(ground)
    # Nobody runs anything: each lease is given back by its holder, or by the relay for a dead one.
    stuck = [] if tail_lost else _stuck_leases(ground)
    _await_holds(ground)
    quiet(ground)
    container = ground.container
    books, repaired, forgotten = _compared(ground, tail_lost=tail_lost)
    rows = _rows(ground)
    letters = _letters(ground)
    notes = truth.read(ground.truth_file)
    evidence = Evidence(
        sent=sent,
        notes=notes,
        rows=rows,
        prices=PRICES,
        open_holds=stuck + [f"{h.customer} {h.task_id}" for h in container.quota.open_holds()],
        books=books + ground.broken + _unreadable(ground),
        letters=letters,
        balances=_balances(ground),
        forgotten=forgotten,
        unreported=_unreported(ground),
    )
    ran = [note for note in notes if note.word in _TRIFLES]
    return Collected(
        evidence=evidence,
        tasks_run=len({note.task_id for note in ran}),
        bodies_run=len(ran),
        rows=len(rows),
        denials=sum(1 for row in rows if row.outcome == "denied"),
        leased_runs=sum(1 for note in notes if note.word is Word.LEASED),
        letters=Counter(letter.reason for letter in letters),
        repaired=repaired,
        drain_seconds=time.monotonic() - began,
    )


def _compared(ground: Ground, *, tail_lost: bool) -> tuple[list[str], Counter[str], dict[str, int]]:
    """What does not agree, what was repaired after a lost tail, and what that had forgotten."""
    container = ground.container
    found = container.invariant_checks.run(ground.since())
    excused = [each for each in found if tail_lost and each.kind in _TAIL_KINDS]
    books = [_told(each) for each in found if each not in excused]
    forgotten = _forgotten(excused)
    if excused:
        container.repair.run(ground.since(), repair=True)
        left = container.invariant_checks.run(ground.since())
        books += [f"after the repair: {_told(each)}" for each in left if not _owed(each, forgotten)]
    return books, Counter(each.kind.value for each in excused), forgotten


def _forgotten(excused: Iterable[Discrepancy]) -> dict[str, int]:
    """Microcredits that the log has and that Redis, having lost its newest data, did not know."""
    return {
        each.customer: each.expected - each.found
        for each in excused
        if each.kind is DiscrepancyKind.SETTLED and each.expected > each.found
    }


def _owed(each: Discrepancy, forgotten: Mapping[str, int]) -> bool:
    """Below zero, now that it is known again, by no more than what could be spent twice."""
    return each.kind is DiscrepancyKind.NEGATIVE and -each.found <= forgotten.get(each.customer, 0)


def _stuck_leases(ground: Ground) -> list[str]:
    """Leases that nobody gives back, though their time is not over yet."""
    deadline = time.monotonic() + _LEASES_SECONDS
    while True:
        holds = ground.container.quota.open_holds()
        left = [hold for hold in holds if hold.task_id.startswith(LEASE_PREFIX)]
        if not left or time.monotonic() > deadline:
            return [f"{hold.customer} {hold.task_id}: not given back" for hold in left]
        time.sleep(_POLL_SECONDS)


def _unreadable(ground: Ground) -> list[str]:
    return [f"unreadable slips: {path.name}" for path in _segments(ground, UNREADABLE_SUFFIX)]


def _await_holds(ground: Ground) -> None:
    """Until no hold is open: those nobody came back for expire, and a sweep gives them back."""
    deadline = time.monotonic() + _HOLDS_SECONDS
    while ground.container.quota.open_holds() and time.monotonic() < deadline:
        ground.container.quota.expire(_SWEPT_AT_ONCE)
        time.sleep(_POLL_SECONDS)


def _rows(ground: Ground) -> list[Row]:
    query = sa.text(
        "SELECT task_id, line, sku_id AS sku, customer_id AS customer, outcome, reason, quantity,"
        " amount_microcredits AS amount, shortfall_microcredits AS shortfall FROM usage_events"
    )
    with ground.container.engine.connect() as connection:
        return [Row(**row) for row in connection.execute(query).mappings()]


def _letters(ground: Ground) -> list[Letter]:
    query = sa.text("SELECT reason, body FROM dead_letters WHERE replayed_at IS NULL")
    with ground.container.engine.connect() as connection:
        return [_letter(row.reason, bytes(row.body)) for row in connection.execute(query)]


def _letter(reason: str, body: bytes) -> Letter:
    try:
        told: Any = orjson.loads(body)
        return Letter(reason=reason, task_id=told["task_id"], line=told["line"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return Letter(reason=reason, task_id="", line="")


def _balances(ground: Ground) -> dict[str, int]:
    """Granted less logged, by customer: the truth alone, without Redis."""
    query = sa.text(
        """
        SELECT c.id,
            (SELECT coalesce(sum(amount_microcredits), 0) FROM grants WHERE customer_id = c.id)
          - (SELECT coalesce(sum(amount_microcredits), 0) FROM usage_events
                WHERE customer_id = c.id) AS left_over
        FROM customers c
        """
    )
    with ground.container.engine.connect() as connection:
        return {row.id: int(row.left_over) for row in connection.execute(query)}


def _unreported(ground: Ground) -> list[str]:
    """Report everything due, then ask for usage of closed hours that is in no report."""
    container = ground.container
    # As if a day had gone: hours older than three days are compared again then, not sooner.
    with container.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM report_passes"))
    for _ in range(_REPORT_RUNS):
        done = container.reporting.reporter().advance(
            until=container.clock.now() + timedelta(minutes=2)
        )
        if not done.planned and not done.became:
            break
    lag = timedelta(seconds=container.settings.report_lag_seconds)
    closed = Period("closed", ground.since(), container.clock.now() - lag - timedelta(hours=1))
    return [
        f"{row.customer} {row.sku}: {row.unclaimed} microcredits"
        for row in container.reporting.reports.sums(closed)
        if row.unclaimed
    ]


def _told(each: Discrepancy) -> str:
    return f"{each.kind.value} {each.customer}: {each.expected} / {each.found} {each.detail}"
