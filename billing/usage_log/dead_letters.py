"""Dead letters: messages that could not be logged, kept, listed, shown and replayed after repair.

The same message and reason are one dead letter, however often it comes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from billing.core.errors import NotFound
from billing.core.usage_event import DeadReason
from billing.postgres.schema import dead_letters
from billing.usage_log.event_reader import Dead

# One that was replayed and comes again is open again.
_BURY = sa.text(
    """
    INSERT INTO dead_letters AS kept
        (digest, reason, detail, body, event_id, customer_id, task_id, times_seen)
    SELECT digest, reason, detail, body, event_id, customer_id, task_id, times_seen
    FROM unnest(
        CAST(:digests AS bytea[]), CAST(:reasons AS text[]), CAST(:details AS text[]),
        CAST(:bodies AS bytea[]), CAST(:event_ids AS text[]), CAST(:customers AS text[]),
        CAST(:task_ids AS text[]), CAST(:times AS bigint[])
    ) WITH ORDINALITY AS dead (digest, reason, detail, body, event_id, customer_id, task_id,
        times_seen, position)
    ORDER BY position
    ON CONFLICT (digest) DO UPDATE SET
        times_seen = kept.times_seen + excluded.times_seen,
        detail = excluded.detail,
        last_seen_at = now(),
        replayed_at = NULL
    """
)


def digest_of(letter: Dead) -> bytes:
    """What makes two dead letters one: the reason and the body."""
    return hashlib.sha256(letter.reason.value.encode() + b"\x00" + letter.body).digest()


def bury(connection: Connection, letters: Iterable[Dead]) -> None:
    """Keep messages that cannot be logged, each with its reason.

    Args:
        connection: The transaction that is to be committed before they are acknowledged.
        letters: In any order, repeats among them.
    """
    counted = Counter[bytes]()
    latest: dict[bytes, Dead] = {}
    for letter in letters:
        digest = digest_of(letter)
        counted[digest] += 1
        latest[digest] = letter
    if not latest:
        return
    rows = [(digest, latest[digest]) for digest in sorted(latest)]
    connection.execute(
        _BURY,
        {
            "digests": [digest for digest, _ in rows],
            "reasons": [letter.reason.value for _, letter in rows],
            "details": [letter.detail for _, letter in rows],
            "bodies": [letter.body for _, letter in rows],
            "event_ids": [letter.event_id for _, letter in rows],
            "customers": [letter.customer for _, letter in rows],
            "task_ids": [letter.task_id for _, letter in rows],
            "times": [counted[digest] for digest, _ in rows],
        },
    )


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One message that was tried again; ``dead`` where it still cannot be logged."""

    inserted: bool
    dead: Dead | None
    late_customers: frozenset[str]


class Rewrites(Protocol):
    """Tries to log the message of a dead letter again (``LogWriter``)."""

    def rewrite(self, body: bytes) -> Rewrite:
        """Log one message; nothing is buried anew."""
        ...


_LISTED: Final = [column for column in dead_letters.c if column.name not in {"digest", "body"}]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """One message that could not be logged. ``body`` is None in a list."""

    id: int
    reason: DeadReason
    detail: str
    event_id: str | None
    customer_id: str | None
    task_id: str | None
    times_seen: int
    first_seen_at: datetime
    last_seen_at: datetime
    replayed_at: datetime | None
    body: bytes | None = None


class ReplayOutcome(StrEnum):
    """What became of a replayed dead letter."""

    LOGGED = "logged"
    DUPLICATE = "duplicate"
    """The log had it already."""
    STILL_DEAD = "still_dead"
    """It still cannot be logged; the dead letter stays, unchanged."""
    NOT_FOUND = "not_found"


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """One replay; ``reason`` and ``detail`` say why it is still dead.

    ``late_customers`` are to be sent their account again, as after ``LogWriter.write``.
    """

    id: int
    outcome: ReplayOutcome
    reason: DeadReason | None = None
    detail: str = ""
    late_customers: frozenset[str] = frozenset()


class DeadLetters:
    """Reads and replays dead letters.

    Args:
        engine: One that may read and update ``dead_letters`` (owner or writer role).
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def list(
        self,
        reason: DeadReason | None = None,
        *,
        limit: int = 100,
        include_replayed: bool = False,
    ) -> list[DeadLetter]:
        """Dead letters, the latest seen first.

        Args:
            reason: Only those of this reason.
            limit: The most to return.
            include_replayed: Also those whose replay succeeded.
        """
        query = sa.select(*_LISTED).where(*_open(reason, include_replayed=include_replayed))
        query = query.order_by(dead_letters.c.last_seen_at.desc(), dead_letters.c.id.desc())
        with self._engine.connect() as connection:
            rows = connection.execute(query.limit(limit)).mappings()
            return [_letter(row) for row in rows]

    def counts(self) -> dict[DeadReason, int]:
        """How many are open, by reason."""
        query = (
            sa.select(dead_letters.c.reason, sa.func.count())
            .where(*_open(None, include_replayed=False))
            .group_by(dead_letters.c.reason)
            .order_by(dead_letters.c.reason)
        )
        with self._engine.connect() as connection:
            return {DeadReason(reason): count for reason, count in connection.execute(query)}

    def show(self, letter_id: int) -> DeadLetter:
        """One dead letter with its body.

        Raises:
            NotFound: There is none of this id.
        """
        query = sa.select(*_LISTED, dead_letters.c.body).where(dead_letters.c.id == letter_id)
        with self._engine.connect() as connection:
            row = connection.execute(query).mappings().one_or_none()
        if row is None:
            raise NotFound("dead letter", str(letter_id), "see: billing dead list")
        return _letter(row)

    def replay(self, which: Sequence[int] | DeadReason, writer: Rewrites) -> Sequence[ReplayResult]:
        """Try messages again. One that is logged, or was, is marked replayed; any other stays.

        A crash between logging and marking leaves it open; its next replay finds a duplicate.

        Args:
            which: Ids, or all open ones of a reason.
            writer: What logs them.

        Returns:
            One result per id, in the order given (by id for a reason).

        Raises:
            sqlalchemy.exc.DBAPIError: The database failed; those before were replayed.
        """
        ids = self._ids(which) if isinstance(which, DeadReason) else which
        return [self._replay(letter_id, writer) for letter_id in ids]

    def _ids(self, reason: DeadReason) -> Sequence[int]:
        query = sa.select(dead_letters.c.id).where(*_open(reason, include_replayed=False))
        with self._engine.connect() as connection:
            return connection.execute(query.order_by(dead_letters.c.id)).scalars().all()

    def _replay(self, letter_id: int, writer: Rewrites) -> ReplayResult:
        try:
            letter = self.show(letter_id)
        except NotFound:
            return ReplayResult(letter_id, ReplayOutcome.NOT_FOUND)
        tried = writer.rewrite(letter.body or b"")
        if tried.dead is not None:
            return ReplayResult(
                letter_id, ReplayOutcome.STILL_DEAD, tried.dead.reason, tried.dead.detail
            )
        mark = (
            sa.update(dead_letters)
            .where(dead_letters.c.id == letter_id)
            .values(replayed_at=sa.func.now())
        )
        with self._engine.begin() as connection:
            connection.execute(mark)
        outcome = ReplayOutcome.LOGGED if tried.inserted else ReplayOutcome.DUPLICATE
        return ReplayResult(letter_id, outcome, late_customers=tried.late_customers)


def _open(reason: DeadReason | None, *, include_replayed: bool) -> Sequence[sa.ColumnElement[bool]]:
    wanted: list[sa.ColumnElement[bool]] = [sa.true()]
    if reason is not None:
        wanted.append(dead_letters.c.reason == reason.value)
    if not include_replayed:
        wanted.append(dead_letters.c.replayed_at.is_(None))
    return wanted


def _letter(row: sa.RowMapping) -> DeadLetter:
    fields: dict[str, Any] = {str(name): value for name, value in row.items()}
    return DeadLetter(**{**fields, "reason": DeadReason(fields["reason"])})
