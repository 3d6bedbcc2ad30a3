"""The writer: a batch of messages becomes rows of the log, rollups and dead letters, all or none.

Order within the transaction, the same in every consumer so that none waits in a circle: fences by
customer, log rows by id, rollups by key, dead letters by digest. (A manifest waits for nobody.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from billing.core.clock import Clock
from billing.core.failpoints import reach
from billing.core.usage_event import DeadReason
from billing.usage_log.batch_hashes import write_manifests
from billing.usage_log.conflicts import Logged, conflicts, logged, out_of_reach
from billing.usage_log.dead_letters import Rewrite, bury
from billing.usage_log.epoch_fence import FenceMoved, FenceNeeded, add_late, lock_fences, recount
from billing.usage_log.event_reader import Dead, EventReader, Row, Rules, unknown_name
from billing.usage_log.rollups import add_to_rollups
from billing.usage_log.row_insert import CopyRefused, RowInsert

_SHARED_ATTEMPTS: Final = 5
"""Tries with shared fences; after that many rebuilds in a row the batch takes them for itself."""

_MOST_EPOCHS: Final = 100_000


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


@dataclass(slots=True)
class _Outcome:
    fresh: list[Row] = field(default_factory=list)
    duplicates: list[Row] = field(default_factory=list)
    dead: list[Dead] = field(default_factory=list)
    told_again: list[Row] = field(default_factory=list)
    """Tellings of what was logged under another epoch."""
    differing: list[Row] = field(default_factory=list)
    """Tellings of another fact than the one that was logged."""
    resend: set[str] = field(default_factory=set)


class LogWriter:
    """Writes batches. Not for several threads at once: each consumer has its own.

    Args:
        engine: As the writer role (``billing.postgres.engines.writer_engine``).
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
        self._reader = EventReader(self._rules)
        self._row_insert = RowInsert()
        self._customers: set[str] = set()
        self._skus: set[str] = set()
        self._epochs: dict[str, int] = {}

    def read(self, bodies: Iterable[bytes]) -> list[Row | Dead]:
        """Check and encode messages, as far as that needs no database. Any thread may ask.

        Args:
            bodies: Messages as they came from the broker.
        """
        return self._reader.read(bodies, self._clock.now())

    def write(
        self, bodies: Sequence[bytes], read: Sequence[Row | Dead] | None = None
    ) -> BatchResult:
        """Log a batch in one transaction; returns after its COMMIT. A repeat changes nothing.

        Args:
            bodies: Messages as they came from the broker.
            read: What the method ``read`` made of them a moment ago, if it was asked.

        Raises:
            sqlalchemy.exc.DBAPIError: The database did not take the batch (unreachable, deadlock,
                missing rights); nothing of it was logged.
        """
        outcome = self._write(read or self.read(bodies), keep_dead=True)
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
        outcome = self._write(self.read([body]), keep_dead=False)
        return Rewrite(
            inserted=bool(outcome.fresh),
            dead=outcome.dead[0] if outcome.dead else None,
            late_customers=frozenset(outcome.resend),
        )

    def bury(self, letters: Sequence[Dead]) -> None:
        """Keep messages as dead letters without trying to log them; returns after COMMIT.

        Args:
            letters: Of ``billing.usage_log.event_reader.dead``.

        Raises:
            sqlalchemy.exc.DBAPIError: As of ``write``.
        """
        with self._engine.begin() as connection:
            bury(connection, letters)

    def _write(self, read: Sequence[Row | Dead], *, keep_dead: bool) -> _Outcome:
        exclusive, by_copy = False, True
        for attempt in range(_SHARED_ATTEMPTS + 2):
            exclusive = exclusive or attempt >= _SHARED_ATTEMPTS
            try:
                with self._engine.begin() as connection:
                    outcome = self._log(connection, read, exclusive=exclusive, by_copy=by_copy)
                    if keep_dead:
                        bury(connection, outcome.dead)
                    reach("consumer.before_commit")
            except FenceMoved:
                self._epochs.clear()
                continue
            except FenceNeeded:
                exclusive = True
                continue
            except CopyRefused:
                by_copy = False
                continue
            reach("consumer.after_commit")
            return outcome
        raise AssertionError("fences held for update cannot move, and COPY is refused once")

    def _log(
        self,
        connection: Connection,
        read: Sequence[Row | Dead],
        *,
        exclusive: bool,
        by_copy: bool,
    ) -> _Outcome:
        outcome = _Outcome(dead=[found for found in read if isinstance(found, Dead)])
        rows = [found for found in read if isinstance(found, Row)]
        valid = self._known(connection, rows, outcome)
        charged: dict[str, set[int]] = {row.event.customer: set() for row in valid}
        for row in valid:
            event = row.event
            if event.amount_microcredits:
                charged[event.customer].add(event.quota_epoch)
        epochs = lock_fences(connection, charged, self._epochs, exclusive=exclusive)
        self._remember(epochs)
        reach("consumer.before_insert")
        self._insert(connection, valid, outcome, by_copy=by_copy)
        write_manifests(connection, outcome.fresh)
        add_to_rollups(connection, outcome.fresh)
        _settle_late(connection, outcome, epochs, exclusive=exclusive)
        return outcome

    def _known(self, connection: Connection, rows: list[Row], outcome: _Outcome) -> list[Row]:
        customers, skus = {row.event.customer for row in rows}, {row.event.sku for row in rows}
        _learn(connection, "customers", self._customers, customers)
        _learn(connection, "skus", self._skus, skus)
        if customers <= self._customers and skus <= self._skus:
            return rows
        known = []
        for row in rows:
            unknown = unknown_name(row, customers=self._customers, skus=self._skus)
            if unknown is None:
                known.append(row)
            else:
                outcome.dead.append(unknown)
        return known

    def _remember(self, epochs: Mapping[str, int]) -> None:
        if len(self._epochs) + len(epochs) > _MOST_EPOCHS:
            self._epochs.clear()
        self._epochs.update(epochs)

    def _insert(
        self, connection: Connection, rows: Sequence[Row], outcome: _Outcome, *, by_copy: bool
    ) -> None:
        """Log what is new; sort the rest into duplicates, conflicts and refused.

        The first telling of an id stands for all of them in the batch. Where the database refuses
        that one, the next is tried.
        """
        pending = rows
        while pending:
            firsts, repeats = _first_tellings(pending)
            # The lookup comes before COPY because a COPY that fails leaves dead rows behind.
            known: dict[bytes, Logged | None] = {**logged(connection, firsts)}
            absent = [first for key, first in firsts.items() if key not in known]
            inserted, refused = self._row_insert.insert(connection, absent, by_copy=by_copy)
            outcome.fresh += inserted
            outcome.dead += refused
            bodies = {letter.body for letter in refused}
            retry = {first.key for first in absent if first.body in bodies} if bodies else set()
            if len(inserted) + len(retry) < len(absent):
                # Another consumer logged some of them a moment ago.
                settled = {*(first.key for first in inserted), *retry}
                raced = [first.key for first in absent if first.key not in settled]
                known |= dict.fromkeys(raced) | logged(connection, raced)
            _sort([firsts[key] for key in known], known, outcome)
            if repeats:
                known |= {
                    each.key: Logged(each.fingerprint, each.event.quota_epoch) for each in inserted
                }
                _sort([each for each in repeats if each.key not in retry], known, outcome)
            pending = [each for each in repeats if each.key in retry]
        outcome.dead += conflicts(connection, outcome.differing)


def _first_tellings(rows: Sequence[Row]) -> tuple[dict[bytes, Row], list[Row]]:
    firsts: dict[bytes, Row] = {}
    first_of = firsts.setdefault
    return firsts, [row for row in rows if first_of(row.key, row) is not row]


def _learn(connection: Connection, table: str, known: set[str], wanted: set[str]) -> None:
    """Look up names that were not known. They are never removed, so what is known stays true."""
    unknown = wanted - known
    if unknown:
        query = sa.text(f"SELECT id FROM {table} WHERE id = ANY(:names)")  # noqa: S608 - ours
        known.update(connection.execute(query, {"names": sorted(unknown)}).scalars())


def _sort(tellings: Iterable[Row], known: Mapping[bytes, Logged | None], outcome: _Outcome) -> None:
    """Sort tellings of what is in the log; None stands for a row that cannot be read."""
    for telling in tellings:
        row = known[telling.key]
        if row is None:
            outcome.dead.append(out_of_reach(telling))
            continue
        if row.epoch != telling.event.quota_epoch:
            outcome.told_again.append(telling)
        if row.fingerprint == telling.fingerprint:
            outcome.duplicates.append(telling)
        else:
            outcome.differing.append(telling)


def _settle_late(
    connection: Connection, outcome: _Outcome, epochs: Mapping[str, int], *, exclusive: bool
) -> None:
    def uncounted(row: Row) -> bool:
        event = row.event
        return bool(event.amount_microcredits) and event.quota_epoch != epochs[event.customer]

    late: Counter[str] = Counter()
    for row in filter(uncounted, outcome.fresh):
        late[row.event.customer] += row.event.amount_microcredits
    again = [
        row
        for row in outcome.told_again
        if row.event.amount_microcredits and row.event.quota_epoch == epochs[row.event.customer] > 0
    ]
    if again and not exclusive:
        raise FenceNeeded
    if again:
        tellings = (
            (
                row.event.customer,
                UUID(bytes=row.key),
                row.event.quota_epoch,
                row.event.amount_microcredits,
            )
            for row in again
        )
        for customer, amount in recount(connection, tellings):
            late[customer] -= amount
    add_late(connection, late)
    # A duplicate may be the telling of a consumer that died between its COMMIT and the resend.
    repeated = (*again, *filter(uncounted, outcome.duplicates))
    outcome.resend = {*late, *(row.event.customer for row in repeated)}
