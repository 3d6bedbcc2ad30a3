"""What tests of seals and archives share: logging, sealing, verifying, and tampering."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from support import make_event

from billing.audit.month_rows import LiveMonth, snapshots
from billing.audit.seal_chain import Seal
from billing.audit.sealer import Sealer, SealingResult, read_seals
from billing.audit.verification_report import VerifyFinding
from billing.audit.verifier import Checked, Verifier
from billing.core.periods import Period, hour_floor, month_of
from billing.core.usage_event import UsageEvent
from billing.postgres.partitions import existing_partitions
from billing.usage_log.log_writer import LogWriter

HOUR = timedelta(hours=1)


@dataclass
class Bench:
    """One log with its seals."""

    engine: sa.Engine
    writer: LogWriter
    now: datetime

    @property
    def hour(self) -> datetime:
        """An hour that is over."""
        return hour_floor(self.now) - 5 * HOUR

    def at(self, instant: datetime, **fields: Any) -> UsageEvent:
        return make_event(metered_at=instant, started_at=None, finished_at=None, **fields)

    def log(self, *events: UsageEvent) -> None:
        result = self.writer.write([event.to_wire() for event in events])
        assert result.inserted == len(events)

    def log_some(self, count: int, hour: datetime | None = None, **fields: Any) -> list[UsageEvent]:
        """Log events spread over an hour."""
        step = HOUR / count
        events = [self.at((hour or self.hour) + step * n, **fields) for n in range(count)]
        self.log(*events)
        return events

    def seal(self, now: datetime | None = None, **options: Any) -> SealingResult:
        return Sealer(self.engine, **options).seal(now or self.now)

    def seals(self) -> list[Seal]:
        with self.engine.connect() as connection:
            return [seal for seal, _ in read_seals(connection)]

    def months(self) -> list[Period]:
        with self.engine.connect() as connection:
            known = [partition.month for partition in existing_partitions(connection)]
        return self.verifier.months(known)

    @property
    def verifier(self) -> Verifier:
        return Verifier(self.engine, lambda month: LiveMonth(month, snapshots(self.engine)))

    def verify(
        self, anchor: dict[int, bytes] | None = None, checked: Checked | None = None
    ) -> list[VerifyFinding]:
        """Everything that verifying finds."""
        found = list(self.verifier.chain(anchor))
        for month in self.months():
            found += self.verifier.month(month, self.now, checked)
        return found

    def kinds(self) -> list[str]:
        return [finding.kind.value for finding in self.verify()]

    def count(self, table: str) -> int:
        with self.engine.connect() as connection:
            found = connection.execute(sa.text(f"SELECT count(*) FROM {table}"))
            return int(found.scalar_one())

    @contextmanager
    def superuser(self) -> Iterator[sa.Connection]:
        """A transaction of somebody whom no trigger and no grant holds back."""
        with self.engine.begin() as connection:
            connection.execute(sa.text("SET LOCAL session_replication_role = replica"))
            yield connection

    def tamper(self, statement: str, **values: object) -> int:
        """One statement by the superuser; how many rows it touched."""
        with self.superuser() as connection:
            return connection.execute(sa.text(statement), values).rowcount

    def remove(self, identifier: UUID) -> None:
        assert self.tamper("DELETE FROM usage_events WHERE id = :id", id=identifier) == 1

    def change(self, identifier: UUID, column: str, value: object) -> None:
        statement = f"UPDATE usage_events SET {column} = :value WHERE id = :id"
        assert self.tamper(statement, id=identifier, value=value) == 1

    def forge(self, like: UUID, identifier: UUID, **values: object) -> None:
        """Add a row that is one of the log's but for its id and some values."""
        columns = [column.name for column in sa_columns() if column.name not in {"id", *values}]
        given = "".join(f", :{name}" for name in values)
        named = "".join(f", {name}" for name in values)
        statement = (
            f"INSERT INTO usage_events (id{named}, {', '.join(columns)})"
            f" SELECT :new{given}, {', '.join(columns)} FROM usage_events WHERE id = :like"
        )
        assert self.tamper(statement, new=identifier, like=like, **values) == 1


def sa_columns() -> list[sa.Column[Any]]:
    from billing.postgres.schema import usage_events  # noqa: PLC0415 - beside its only use

    return list(usage_events.c)


def month_before(month: Period, count: int = 1) -> Period:
    """The UTC month so many before."""
    for _ in range(count):
        month = month_of(month.start - timedelta(days=1))
    return month
