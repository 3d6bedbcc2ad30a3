"""Dead letters: what could not be logged, listed, shown and replayed after repair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from billing.core.errors import NotFound
from billing.core.usage_event import DeadReason
from billing.postgres.schema import dead_letters
from billing.usage_log.log_writer import LogWriter

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

    def replay(
        self, which: Sequence[int] | DeadReason, writer: LogWriter
    ) -> Sequence[ReplayResult]:
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

    def _replay(self, letter_id: int, writer: LogWriter) -> ReplayResult:
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
