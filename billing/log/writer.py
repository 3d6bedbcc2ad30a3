"""The writer: a batch of messages becomes rows of the log, rollups and dead letters, all or none.

Order within the transaction, the same in every consumer so that none waits in a circle: fences by
customer, log rows by id, rollups by key, dead letters by digest.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from billing.core.clock import Clock
from billing.core.failpoints import reach
from billing.log.burial import bury
from billing.log.conflicts import as_logged, conflict, logged
from billing.log.fences import FenceMoved, FenceNeeded, add_late, lock_fences, recount
from billing.log.insert import insert_events
from billing.log.screen import Candidate, Dead, Rules, screen, unknown_name
from billing.log.tally import add_to_rollups
from billing.usage.event import DeadReason, UsageEvent

_SHARED_ATTEMPTS: Final = 5
"""Tries with shared fences; after that many rebuilds in a row the batch takes them for itself."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of a batch; the numbers add up to its messages.

    ``late_customers`` are those whose account is to be sent to Redis again: the log has got amounts
    that the balance of the present epoch has not counted, in this batch or in a telling before.
    """

    inserted: int
    duplicates: int
    dead: Mapping[DeadReason, int]
    late_customers: frozenset[str]


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What became of one message that was tried again; ``dead`` where it still cannot be logged."""

    inserted: bool
    dead: Dead | None
    late_customers: frozenset[str]


@dataclass(slots=True)
class _Outcome:
    fresh: list[UsageEvent] = field(default_factory=list)
    duplicates: list[UsageEvent] = field(default_factory=list)
    dead: list[Dead] = field(default_factory=list)
    told_again: list[UsageEvent] = field(default_factory=list)
    """Tellings of what was logged under another epoch."""
    resend: set[str] = field(default_factory=set)


class LogWriter:
    """Writes batches. Not for several threads at once: each consumer has its own.

    Args:
        engine: As the writer role (``billing.log.engine.writer_engine``).
        clock: Tells how old an event is.
        max_age: Older events, by ``metered_at``, become dead letters.
        max_ahead: So do those further in the future.
        currency: The one currency of this log.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        clock: Clock,
        max_age: timedelta,
        max_ahead: timedelta,
        currency: str,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._rules = Rules(max_age=max_age, max_ahead=max_ahead, currency=currency)
        self._customers: set[str] = set()
        self._skus: set[str] = set()

    def write(self, bodies: Sequence[bytes]) -> BatchResult:
        """Log a batch in one transaction; returns after its COMMIT. A repeat changes nothing.

        Args:
            bodies: Messages as they came from the broker.

        Raises:
            sqlalchemy.exc.DBAPIError: The database did not take the batch (unreachable, deadlock,
                missing rights); nothing of it was logged.
        """
        outcome = self._write(bodies, keep_dead=True)
        return BatchResult(
            inserted=len(outcome.fresh),
            duplicates=len(outcome.duplicates),
            dead=Counter(letter.reason for letter in outcome.dead),
            late_customers=frozenset(outcome.resend),
        )

    def rewrite(self, body: bytes) -> Rewrite:
        """Try a dead letter's message again. It is not buried anew if it still cannot be logged.

        Raises:
            sqlalchemy.exc.DBAPIError: As of ``write``.
        """
        outcome = self._write([body], keep_dead=False)
        return Rewrite(
            inserted=bool(outcome.fresh),
            dead=outcome.dead[0] if outcome.dead else None,
            late_customers=frozenset(outcome.resend),
        )

    def bury(self, letters: Sequence[Dead]) -> None:
        """Keep messages as dead letters without trying to log them; returns after COMMIT.

        Args:
            letters: Of ``billing.log.screen.dead``.

        Raises:
            sqlalchemy.exc.DBAPIError: As of ``write``.
        """
        with self._engine.begin() as connection:
            bury(connection, letters)

    def _write(self, bodies: Sequence[bytes], *, keep_dead: bool) -> _Outcome:
        now = self._clock.now()
        screened = [screen(body, rules=self._rules, now=now) for body in bodies]
        exclusive = False
        for attempt in range(_SHARED_ATTEMPTS + 1):
            exclusive = exclusive or attempt == _SHARED_ATTEMPTS
            try:
                with self._engine.begin() as connection:
                    outcome = self._log(connection, screened, exclusive)
                    if keep_dead:
                        bury(connection, outcome.dead)
                    reach("consumer.before_commit")
            except FenceMoved:
                continue
            except FenceNeeded:
                exclusive = True
                continue
            reach("consumer.after_commit")
            return outcome
        raise AssertionError("fences held for update cannot move")

    def _log(
        self, connection: Connection, screened: Sequence[Candidate | Dead], exclusive: bool
    ) -> _Outcome:
        outcome = _Outcome(dead=[found for found in screened if isinstance(found, Dead)])
        valid = self._known(
            connection, [found for found in screened if isinstance(found, Candidate)], outcome
        )
        charged: dict[str, set[int]] = {row.event.customer: set() for row in valid}
        for row in valid:
            if row.event.amount_microcredits:
                charged[row.event.customer].add(row.event.quota_epoch)
        epochs = lock_fences(connection, charged, exclusive=exclusive)
        reach("consumer.before_insert")
        _insert(connection, valid, outcome)
        add_to_rollups(connection, outcome.fresh)
        _settle_late(connection, outcome, epochs, exclusive=exclusive)
        return outcome

    def _known(
        self, connection: Connection, candidates: list[Candidate], outcome: _Outcome
    ) -> list[Candidate]:
        _learn(connection, "customers", self._customers, {c.event.customer for c in candidates})
        _learn(connection, "skus", self._skus, {c.event.sku for c in candidates})
        known = []
        for candidate in candidates:
            unknown = unknown_name(candidate, customers=self._customers, skus=self._skus)
            if unknown is None:
                known.append(candidate)
            else:
                outcome.dead.append(unknown)
        return known


def _learn(connection: Connection, table: str, known: set[str], wanted: set[str]) -> None:
    """Look up names that were not known. They are never removed, so what is known stays true."""
    unknown = wanted - known
    if unknown:
        query = sa.text(f"SELECT id FROM {table} WHERE id = ANY(:names)")  # noqa: S608 - ours
        known.update(connection.execute(query, {"names": sorted(unknown)}).scalars())


def _insert(connection: Connection, candidates: Sequence[Candidate], outcome: _Outcome) -> None:
    """Log what is new; sort the rest into duplicates, conflicts and refused.

    The first telling of an id stands for all of them in the batch. Where the database refuses that
    one, the next is tried.
    """
    tellings: defaultdict[UUID, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        tellings[candidate.event.id].append(candidate)
    while tellings:
        new, refused = insert_events(connection, [group[0] for group in tellings.values()])
        outcome.dead += refused
        bodies = {letter.body for letter in refused}
        retry = {key: group for key, group in tellings.items() if group[0].body in bodies}
        known = logged(connection, [key for key in tellings if key not in new and key not in retry])
        for key, group in tellings.items():
            if key in new:
                outcome.fresh.append(group[0].event)
                _sort(group[1:], as_logged(group[0]), outcome)
            elif key not in retry:
                _sort(group, known.get(key), outcome)
        tellings = defaultdict(list, {k: group[1:] for k, group in retry.items() if group[1:]})


def _sort(
    candidates: Sequence[Candidate], row: Mapping[str, Any] | None, outcome: _Outcome
) -> None:
    for candidate in candidates:
        if row is not None and row["quota_epoch"] != candidate.event.quota_epoch:
            outcome.told_again.append(candidate.event)
        letter = conflict(candidate, row)
        if letter is None:
            outcome.duplicates.append(candidate.event)
        else:
            outcome.dead.append(letter)


def _settle_late(
    connection: Connection, outcome: _Outcome, epochs: Mapping[str, int], *, exclusive: bool
) -> None:
    def uncounted(event: UsageEvent) -> bool:
        return event.amount_microcredits > 0 and event.quota_epoch != epochs[event.customer]

    late: Counter[str] = Counter()
    for event in filter(uncounted, outcome.fresh):
        late[event.customer] += event.amount_microcredits
    again = [
        event
        for event in outcome.told_again
        if event.amount_microcredits and event.quota_epoch == epochs[event.customer] > 0
    ]
    if again and not exclusive:
        raise FenceNeeded
    if again:
        tellings = ((e.customer, e.id, e.quota_epoch, e.amount_microcredits) for e in again)
        for customer, amount in recount(connection, tellings):
            late[customer] -= amount
    add_late(connection, late)
    # A duplicate may be the telling of a consumer that died between its COMMIT and the resend.
    repeated = (*again, *filter(uncounted, outcome.duplicates))
    outcome.resend = {*late, *(event.customer for event in repeated)}
