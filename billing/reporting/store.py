"""Reports in PostgreSQL: planned from the rollups, claimed, answered.

Every method is a transaction of its own. Guards are in the database: one latest and one open
revision per bucket, one report in flight per provider, customer and meter are unique indexes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID, uuid4

from sqlalchemy.engine import Connection, Engine, Row
from sqlalchemy.exc import IntegrityError

from billing.core.period import Period
from billing.reporting import queries
from billing.reporting.due import (
    FOLLOWS_THE_CUSTOMER,
    Bucket,
    Depth,
    Holder,
    Last,
    Revision,
    covered,
    depth_due,
    reaches_to,
    revise,
)
from billing.reporting.provider import Answer, Meter, UsageReport
from billing.reporting.report import (
    CREDIT_DECIMALS,
    DEDUPLICATED_FOR,
    EVENT_OFFSET,
    Outcome,
    ParkedBy,
    State,
    identifier_of,
)

_CHUNK: Final = 1000
"""Buckets read and written at once: the memory of a pass does not grow with what is due."""

# Any constant does, as long as nothing else in the database locks the same one.
_ONE_PASS_AT_A_TIME: Final = 0x57656967_72657074


class CustomerIds(StrEnum):
    """Which id a provider knows a customer by; the values are columns of ``customers``."""

    OURS = "id"
    STRIPE = "stripe_customer_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metered:
    """How a SKU is counted at a provider: its meter, and the decimals of a credit it counts."""

    meter: Meter
    decimals: int = CREDIT_DECIMALS


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Who gets usage now.

    ``environment`` tells installations apart that report to one account. ``metered`` gives a SKU's
    meter there. ``max_age``: see ``Provider.max_age``.
    """

    environment: str
    provider: str
    customer_ids: CustomerIds
    metered: Callable[[str], Metered]
    max_age: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A report to be sent, now in state ``sending``: this reporter's until its lease ends."""

    id: int
    claim: UUID
    customer: str
    report: UsageReport
    attempts: int
    doubtful: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """A customer's SKU in a period, in microcredits: ``logged`` is the sum of the other four.

    ``unclaimed``: hours that are not closed, or not compared since they changed.
    """

    customer: str
    sku: str
    logged: int
    accepted: int
    open: int
    parked: int
    unclaimed: int


class Reports:
    """The outbox of reports.

    Args:
        engine: PostgreSQL, as the owner role.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def plan(self, destination: Destination, *, until: datetime, now: datetime) -> int:
        """Write down every revision that is due for hours before ``until``; returns how many.

        Reads the rollups and never the log. How far back it compares: ``due.depth_due``. While
        another reporter is at it, it does nothing.
        """
        written = 0
        with self._engine.begin() as reading:
            if not reading.execute(queries.TRY_LOCK, {"key": _ONE_PASS_AT_A_TIME}).scalar_one():
                return 0
            depth = self._depth(reading, destination.provider, now)
            for chunk in _due(reading, destination, depth, until, now):
                written += self._write(chunk, destination, now)
            for done in covered(depth):
                reading.execute(
                    queries.PASSED,
                    {"provider": destination.provider, "depth": done.value, "now": now},
                )
        return written

    def recover(self, now: datetime) -> int:
        """Reports whose reporter is gone become unknown; those that may not be sent again, parked.

        Returns:
            How many were left behind in the middle of sending.
        """
        with self._engine.begin() as connection:
            gone = connection.execute(queries.RECLAIM, {"now": now}).rowcount
            connection.execute(
                queries.PARK_UNDECIDED,
                {
                    "before": now - DEDUPLICATED_FOR,
                    "cause": ParkedBy.NO_ANSWER.value,
                    "detail": "a meter that adds gave no answer for 22 hours: read it back by hand",
                },
            )
        return gone

    def claim(
        self,
        provider: str,
        *,
        now: datetime,
        lease: timedelta,
        limit: int,
        after: str = "",
        blocked: Sequence[str] = (),
    ) -> list[Claimed]:
        """Take reports to send: at most one per customer and meter, its oldest hour first.

        Args:
            provider: Whose.
            now: The time.
            lease: After it the report counts as left behind; well above a request's time-out.
            limit: The most to take.
            after: Customers up to this one come later: the next call goes on where this one ended.
            blocked: Meters that nothing may be sent to.
        """
        claim = uuid4()
        parameters = {
            "provider": provider, "now": now, "until": now + lease, "limit": limit,
            "after": after, "blocked": list(blocked), "claim": claim,
        }  # fmt: skip
        try:
            with self._engine.begin() as connection:
                rows = connection.execute(queries.CLAIM, parameters).all()
        except IntegrityError:
            # Another reporter took a report of the same customer and meter in this moment.
            return []
        return sorted((_claimed(row, claim) for row in rows), key=lambda found: found.customer)

    def answer(
        self,
        claimed: Claimed,
        outcome: Outcome,
        answer: Answer,
        *,
        now: datetime,
        next_at: datetime,
    ) -> bool:
        """Note what became of a claimed report.

        Returns:
            False where the claim was lost meanwhile: then nothing is changed, and whoever has it
            sends the same figure under the same identifier.
        """
        parameters = {
            "id": claimed.id, "claim": claimed.claim, "state": outcome.state.value,
            "doubtful": outcome.doubtful, "cause": answer.cause.value,
            "detail": answer.detail[:500], "now": now, "next_at": next_at,
        }  # fmt: skip
        with self._engine.begin() as connection:
            return connection.execute(queries.ANSWER, parameters).rowcount == 1

    def release(self, claimed: Sequence[Claimed]) -> None:
        """Give back reports that were claimed and not sent."""
        if not claimed:
            return
        parameters = {"ids": [c.id for c in claimed], "claim": claimed[0].claim}
        with self._engine.begin() as connection:
            connection.execute(queries.RELEASE, parameters)

    def retry(self, report: int, *, now: datetime) -> bool:
        """A parked report is sent again, as it is; False where it is none or cannot be sent.

        Only a bucket's last revision can be, and only one that is complete.
        """
        with self._engine.begin() as connection:
            return connection.execute(queries.RETRY, {"id": report, "now": now}).rowcount == 1

    def park(self, report: int, detail: str) -> bool:
        """Hold back a report that is pending or unknown; False where it is neither."""
        parameters = {"id": report, "cause": ParkedBy.BY_HAND.value, "detail": detail[:500]}
        with self._engine.begin() as connection:
            return connection.execute(queries.PARK, parameters).rowcount == 1

    def oldest_open(self, provider: str) -> datetime | None:
        """The hour of the oldest report without its answer; None where there is none."""
        with self._engine.connect() as connection:
            found: datetime | None = connection.execute(
                queries.OLDEST_OPEN, {"provider": provider}
            ).scalar()
        return found

    def open_elsewhere(self, provider: str) -> list[str]:
        """Other providers that reports were sent to and are without an answer."""
        with self._engine.connect() as connection:
            return list(
                connection.execute(queries.OPEN_ELSEWHERE, {"provider": provider}).scalars()
            )

    def sums(self, period: Period) -> list[Sums]:
        """The invariant's terms per customer and SKU, from one snapshot."""
        parameters = {"start": period.start, "end": period.end}
        with self._engine.connect() as connection:
            rows = connection.execute(queries.SUMS, parameters).all()
        return [
            Sums(customer=row.customer_id, sku=row.sku_id, logged=int(row.logged),
                 accepted=int(row.accepted), open=int(row.open), parked=int(row.parked),
                 unclaimed=int(row.unclaimed))
            for row in rows
        ]  # fmt: skip

    def _depth(self, connection: Connection, provider: str, now: datetime) -> Depth:
        rows = connection.execute(queries.PASSES, {"provider": provider})
        return depth_due({Depth(row.depth): row.started_at for row in rows}, now)

    def _write(
        self, chunk: Sequence[tuple[Row[Any], Revision]], destination: Destination, now: datetime
    ) -> int:
        """Write a chunk of revisions; what changed since it was read is left to the next pass."""
        with self._engine.begin() as connection:
            lasts = {row.last_id: (row.last_state, row.last_doubtful) for row, _ in chunk}
            lasts.pop(None, None)
            found = connection.execute(queries.LOCK_LASTS, {"ids": sorted(lasts)})
            held = {row.id for row in found if lasts[row.id] == (row.state, row.doubtful)}
            good = [(row, new) for row, new in chunk if row.last_id is None or row.last_id in held]
            handed = [row.last_id for row, new in good if new.hands_over]
            connection.execute(
                queries.HAND_OVER, {"ids": handed, "cause": ParkedBy.PROVIDER_CHANGED.value}
            )
            connection.execute(queries.NO_LONGER_LATEST, {"ids": sorted(held)})
            rows = [_values(row, new, destination, now) for row, new in good]
            return connection.execute(queries.INSERT, rows).rowcount if rows else 0


def _due(
    connection: Connection, destination: Destination, depth: Depth, until: datetime, now: datetime
) -> Iterator[list[tuple[Row[Any], Revision]]]:
    parameters = {
        "provider": destination.provider,
        "since": reaches_to(depth, now),
        "until": until,
        "by_hand": ParkedBy.BY_HAND.value,
        "follows": sorted(FOLLOWS_THE_CUSTOMER),
    }
    result = connection.execute(
        queries.DUE[destination.customer_ids.value],
        parameters,
        execution_options={"yield_per": _CHUNK},
    )
    for rows in result.partitions():
        chunk = []
        for row in rows:
            metered = destination.metered(row.sku_id)
            new = revise(_bucket(row), destination.provider, metered.meter, metered.decimals)
            if new is not None:
                chunk.append((row, new))
        if chunk:
            yield chunk


def _bucket(row: Row[Any]) -> Bucket:
    last = None
    if row.last_id is not None:
        last = Last(
            holder=Holder(row.last_provider, row.last_ref, row.last_meter),
            revision=row.last_revision,
            state=State(row.last_state),
            cause=row.last_cause,
            doubtful=row.last_doubtful,
            total_microcredits=int(row.last_total),
        )
    return Bucket(
        customer=row.customer_id,
        sku=row.sku_id,
        hour=row.hour,
        total_microcredits=int(row.total),
        customer_ref=row.customer_ref,
        last=last,
        taken={Holder(*names): int(held) for *names, held in row.taken or ()},
    )


def _values(
    row: Row[Any], new: Revision, destination: Destination, now: datetime
) -> Mapping[str, object]:
    meter = destination.metered(row.sku_id).meter
    return {
        "customer": row.customer_id,
        "sku": row.sku_id,
        "hour": row.hour,
        "revision": new.revision,
        "provider": destination.provider,
        "meter": meter.name,
        "overwrites": meter.overwrites,
        "identifier": identifier_of(
            destination.environment, destination.provider, meter.name, row.customer_id,
            row.hour, new.revision,
        ),
        "customer_ref": new.holder.customer_ref,
        "value": new.value,
        "event_at": row.hour + EVENT_OFFSET,
        "total": new.total_microcredits,
        "held": new.held_microcredits,
        "state": new.state.value,
        "cause": new.cause,
        "now": now,
    }  # fmt: skip


def _claimed(row: Row[Any], claim: UUID) -> Claimed:
    return Claimed(
        id=row.id,
        claim=claim,
        customer=row.customer_id,
        report=UsageReport(
            identifier=row.identifier,
            customer_ref=row.customer_ref,
            meter=row.meter,
            hour=row.hour,
            value=int(row.value),
            timestamp=row.event_at,
        ),
        attempts=row.attempts,
        doubtful=row.doubtful,
    )
