"""Writing down what is due: buckets compared with their last revisions, in PostgreSQL.

What is compared is read by one statement, and written in chunks, each a transaction of its own: an
adjustment commits with the revision that does without it, or not at all. A bucket whose last
revision is not what it was when it was read is left to the next pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import orjson
from sqlalchemy.engine import Connection, Engine, Row

from billing.core.periods import hour_floor
from billing.postgres.locks import AdvisoryLock, try_lock
from billing.reporting import planner_sql as queries
from billing.reporting.adjustments import (
    Adjustment,
    AdjustmentTerms,
    BucketPlan,
    Leftover,
    left_over,
    plan_bucket,
    too_old_before,
)
from billing.reporting.destination import Destination, Metered
from billing.reporting.revision_rules import (
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
from billing.reporting.usage_report import (
    AT_REST,
    EVENT_OFFSET,
    AttentionCause,
    ReportState,
    identifier_of,
)

_CHUNK: Final = 1000
"""Buckets read and written at once: the memory of a pass does not grow with what is due."""

_Key = tuple[str, str, datetime]
"""Customer, SKU and hour."""

# Any constant does, as long as nothing else in the database locks the same one.


@dataclass(frozen=True, slots=True)
class _Weighed:
    """A bucket as it was read, and what becomes of it."""

    row: Row[Any]
    bucket: Bucket
    plan: BucketPlan


@dataclass(slots=True)
class _Remaining:
    """A leftover as it was read, and what is left of it."""

    row: Row[Any]
    bucket: Bucket
    leftover: Leftover


class Pass:
    """One comparison of totals with reports.

    Args:
        engine: PostgreSQL, as the owner role.
        destination: Where usage goes.
        until: Hours before this are compared.
        now: The time.
    """

    def __init__(
        self, engine: Engine, destination: Destination, *, until: datetime, now: datetime
    ) -> None:
        self._engine = engine
        self._destination = destination
        self._until = until
        self._now = now
        self._metered: dict[str, Metered] = {}

    def run(self) -> int:
        """Write down what is due; returns how many revisions. Nothing while another pass runs."""
        written = 0
        provider = self._destination.provider
        with self._engine.begin() as reading:
            if not try_lock(reading, AdvisoryLock.REPORT_PLANNING):
                return 0
            reading.execute(queries.READ_WHOLE)
            self._metered = dict(self._known_skus(reading))
            depth = self._depth(reading)
            for rows in self._due(reading, depth):
                written += self._write(rows)
            for done in covered(depth):
                reading.execute(
                    queries.PASSED, {"provider": provider, "depth": done.value, "now": self._now}
                )
        return written

    def _known_skus(self, reading: Connection) -> Iterator[tuple[str, Metered]]:
        for sku in reading.execute(queries.SKUS).scalars():
            try:
                yield sku, self._destination.metered(sku)
            except LookupError:
                # Added after the meters were read: the next run knows it.
                continue

    def _depth(self, reading: Connection) -> Depth:
        rows = reading.execute(queries.PASSES, {"provider": self._destination.provider})
        return depth_due({Depth(row.depth): row.started_at for row in rows}, self._now)

    @property
    def _too_old(self) -> datetime | None:
        return too_old_before(self._now, self._destination.max_age)

    def _due(self, reading: Connection, depth: Depth) -> Iterator[Sequence[Row[Any]]]:
        parameters = self._of_meters() | {
            "since": reaches_to(depth, self._now),
            "until": self._until,
            "at_rest": sorted({*AT_REST, AttentionCause.BY_HAND}),
        }
        result = reading.execute(
            queries.DUE[self._destination.customer_ids.value],
            parameters,
            execution_options={"yield_per": _CHUNK},
        )
        for rows in result.partitions():
            yield [row for row in rows if row.sku_id in self._metered]

    def _of_meters(self) -> dict[str, object]:
        names = {sku: one.meter.name for sku, one in self._metered.items()}
        return {
            "provider": self._destination.provider,
            "meters": orjson.dumps(names).decode(),
        }

    def _terms(self, sku: str) -> AdjustmentTerms:
        metered = self._metered[sku]
        return AdjustmentTerms(
            provider=self._destination.provider,
            meter=metered.meter,
            decimals=metered.decimals,
            under_way=hour_floor(self._now),
            too_old=self._too_old,
        )

    def _write(self, rows: Sequence[Row[Any]]) -> int:
        """Write what becomes of a chunk of buckets; what changed meanwhile waits."""
        with self._engine.begin() as connection:
            remaining = self._leftovers(connection, rows)
            plan = [self._plan(row, remaining) for row in rows]
            wanted = [one for one in plan if one.plan != BucketPlan()]
            touched = _touched(wanted, remaining)
            good = self._still(connection, wanted, touched)
            written = self._insert(connection, [(each.row, each.plan.revision) for each in good])
            carries = [
                (each.row, line)
                for each in good
                if each.plan.revision is None
                or self._named(each.row, each.plan.revision) in written
                for line in _lines(each.plan)
            ]
            relieved = self._insert(connection, list(self._relieved(carries, touched)))
            _carry(connection, carries, self._now)
            return len(written) + len(relieved)

    def _leftovers(
        self, connection: Connection, rows: Sequence[Row[Any]]
    ) -> dict[tuple[str, str], list[_Remaining]]:
        """Leftovers of earlier hours of these customers' SKUs, without those in ``rows``."""
        parameters = self._of_meters() | {
            "of_customers": [row.customer_id for row in rows],
            "of_skus": [row.sku_id for row in rows],
        }
        statement = queries.LEFTOVERS[self._destination.customer_ids.value]
        # A leftover that is read here as it was needs nothing by itself: others may take it.
        here = {row.last_id for row in rows if row.total != row.last_total}
        found: defaultdict[tuple[str, str], list[_Remaining]] = defaultdict(list)
        for row in connection.execute(statement, parameters):
            bucket = _bucket(row)
            leftover = left_over(bucket, self._terms(row.sku_id))
            if leftover is not None and row.last_id not in here:
                found[row.customer_id, row.sku_id].append(_Remaining(row, bucket, leftover))
        return found

    def _plan(
        self, row: Row[Any], remaining: Mapping[tuple[str, str], Sequence[_Remaining]]
    ) -> _Weighed:
        of_sku = remaining.get((row.customer_id, row.sku_id), ())
        bucket = _bucket(row)
        plan = plan_bucket(bucket, self._terms(row.sku_id), [each.leftover for each in of_sku])
        for line in plan.taken:
            for each in of_sku:
                if each.leftover.hour == line.from_hour:
                    left = each.leftover.amount_microcredits - line.amount_microcredits
                    each.leftover = Leftover(each.leftover.hour, left)
        return _Weighed(row, bucket, plan)

    def _still(
        self,
        connection: Connection,
        wanted: Sequence[_Weighed],
        touched: Mapping[_Key, _Remaining],
    ) -> list[_Weighed]:
        """Lock last revisions and give what still stands on them, itself and what it takes from."""
        rows = [each.row for each in wanted] + [each.row for each in touched.values()]
        read = {
            row.last_id: (row.last_state, row.last_cause, row.last_doubtful)
            for row in rows
            if row.last_id is not None
        }
        found = connection.execute(queries.LOCK_LASTS, {"ids": sorted(read)})
        held = {r.id for r in found if read[r.id] == (r.state, r.cause, r.doubtful)}
        gone = {key for key, each in touched.items() if each.row.last_id not in held}
        return [
            each
            for each in wanted
            if (each.row.last_id is None or each.row.last_id in held)
            and not any(_key(each.row, line.from_hour) in gone for line in each.plan.taken)
        ]

    def _insert(
        self, connection: Connection, revisions: Sequence[tuple[Row[Any], Revision | None]]
    ) -> set[str]:
        """Write revisions in place of their buckets' last ones; the identifiers of those."""
        new = [(row, revision) for row, revision in revisions if revision is not None]
        if not new:
            return set()
        for cause in (AttentionCause.PROVIDER_CHANGED, AttentionCause.CARRIED):
            waiting = [row.last_id for row, revision in new if revision.parks_last is cause]
            if waiting:
                connection.execute(queries.HAND_OVER, {"ids": waiting, "cause": cause.value})
        lasts = sorted(row.last_id for row, _ in new if row.last_id is not None)
        connection.execute(queries.NO_LONGER_LATEST, {"ids": lasts})
        rows = [self._values(row, revision) for row, revision in new]
        parameters = {
            "rows": orjson.dumps(rows).decode(),
            "provider": self._destination.provider,
            "now": self._now,
        }
        return set(connection.execute(queries.INSERT, parameters).scalars())

    def _relieved(
        self,
        carries: Sequence[tuple[Row[Any], Adjustment]],
        touched: Mapping[_Key, _Remaining],
    ) -> Iterator[tuple[Row[Any], Revision | None]]:
        """The next revisions of leftovers, which stand for what is left of them."""
        amounts: defaultdict[_Key, int] = defaultdict(int)
        for row, line in carries:
            amounts[_key(row, line.from_hour)] += line.amount_microcredits
        for key, each in touched.items():
            if key in amounts:
                total = each.bucket.total_microcredits - amounts[key]
                metered = self._metered[each.row.sku_id]
                yield each.row, revise(
                    replace(each.bucket, total_microcredits=total),
                    self._destination.provider, metered.meter, metered.decimals,
                )  # fmt: skip

    def _named(self, row: Row[Any], new: Revision) -> str:
        return identifier_of(
            self._destination.environment, self._destination.provider, new.holder.meter,
            row.customer_id, row.hour, new.revision,
        )  # fmt: skip

    def _values(self, row: Row[Any], new: Revision) -> dict[str, object]:
        return {
            "customer": row.customer_id,
            "sku": row.sku_id,
            "hour": row.hour,
            "revision": new.revision,
            "meter": new.holder.meter,
            "identifier": self._named(row, new),
            "customer_ref": new.holder.customer_ref,
            "value": str(new.value),
            "event_at": row.hour + EVENT_OFFSET,
            "total": str(new.total_microcredits),
            "held": str(new.held_microcredits),
            "state": new.state.value,
            "cause": new.cause,
            "detail": new.detail,
        }


def _key(row: Row[Any], hour: datetime) -> _Key:
    return row.customer_id, row.sku_id, hour


def _lines(plan: BucketPlan) -> tuple[Adjustment, ...]:
    return plan.taken if plan.out is None else (*plan.taken, plan.out)


def _touched(
    wanted: Sequence[_Weighed], remaining: Mapping[tuple[str, str], Sequence[_Remaining]]
) -> dict[_Key, _Remaining]:
    """The leftovers that something is taken from."""
    keys = {_key(each.row, line.from_hour) for each in wanted for line in each.plan.taken}
    of_all = [each for of_sku in remaining.values() for each in of_sku]
    by_key = {_key(each.row, each.bucket.hour): each for each in of_all}
    return {key: by_key[key] for key in sorted(keys)}


def _carry(
    connection: Connection, carries: Sequence[tuple[Row[Any], Adjustment]], now: datetime
) -> None:
    if not carries:
        return
    rows = [
        {
            "customer": row.customer_id,
            "sku": row.sku_id,
            "from_hour": line.from_hour,
            "to_hour": line.to_hour,
            "amount": str(line.amount_microcredits),
            "reason": line.reason.value,
        }
        for row, line in carries
    ]
    connection.execute(queries.CARRY, {"rows": orjson.dumps(rows).decode(), "now": now})


def _bucket(row: Row[Any]) -> Bucket:
    last = None
    if row.last_id is not None:
        last = Last(
            holder=Holder(row.last_provider, row.last_ref, row.last_meter),
            revision=row.last_revision,
            state=ReportState(row.last_state),
            cause=row.last_cause,
            outcome_unknown=row.last_doubtful,
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
        closed_until=row.closed_until,
        carried_in_microcredits=-int(row.carried),
    )
