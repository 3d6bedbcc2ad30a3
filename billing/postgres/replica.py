"""The freshness of answers: a replica repeats the primary's commits a little later."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from billing.core.clock import format_instant

_WHERE: Final = sa.text(
    "SELECT pg_is_in_recovery(), pg_last_xact_replay_timestamp(), clock_timestamp()"
)


@dataclass(frozen=True, slots=True)
class AsOf:
    """The server that answers, and the instant up to which its answers are complete.

    Attributes:
        replica: Whether it is a replica; else the primary, whose answers are complete.
        at: Everything committed up to this instant, by the primary's clock, is in the answers, and
            later commits perhaps not. On a replica it is the last commit that it has repeated, so
            it also stands still where nothing is committed. None: it has repeated none yet.
    """

    replica: bool
    at: datetime | None

    def __str__(self) -> str:
        if self.at is None:
            return "as of an unknown instant, from a replica"
        source = "a replica" if self.replica else "the primary"
        return f"as of {format_instant(self.at)}, from {source}"


def as_of(engine: Engine) -> AsOf:
    """Ask the server that the engine would use now.

    Call it before the query itself, whose answer can then only be fresher.
    """
    with engine.connect() as connection:
        replica, repeated, now = connection.execute(_WHERE).one()
    return AsOf(replica=replica, at=repeated if replica else now)
