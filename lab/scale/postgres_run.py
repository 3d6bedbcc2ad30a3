"""A streaming replica answers questions while the primary writes; then it stops, and comes back."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Final

import sqlalchemy as sa
from pydantic import SecretStr

from billing.core.event_ids import event_id
from billing.core.periods import month_of
from billing.core.usage_event import Outcome, UsageEvent, usage_line
from lab.scale.load import CUSTOMER, SKU
from lab.scale.postgres import Replica
from lab.scale.stage import Ground, Say, Stage, wait_until
from lab.scale.verdict import Row, books, percentile

_CUSTOMERS: Final = 20
_BATCH: Final = 500
_CATCH_UP_SECONDS: Final = 60.0
_SAMPLE_SECONDS: Final = 0.05
_WRITTEN: Final = sa.text("SELECT pg_current_wal_lsn()")
_REPEATED: Final = sa.text(
    "SELECT pg_is_in_recovery() AND pg_wal_lsn_diff(pg_last_wal_replay_lsn(), "
    "CAST(:written AS pg_lsn)) >= 0"
)


def run(ground: Ground, seconds: float, say: Say) -> dict[str, Any]:
    """Write for so many seconds; the replica is away in the middle third."""
    folder = ground.folder_of("postgres")
    replica = Replica(str(ground.settings("probe").database_url.get_secret_value()), folder / "r")  # type: ignore[union-attr]
    try:
        say("copying the primary (pg_basebackup), starting a replica")
        stage = Stage(
            ground,
            "postgres",
            customers=_CUSTOMERS,
            credits_each=1_000_000,
            changed={"database_read_url": SecretStr(replica.url)},
        )
        stage.set_up()
        replica.start()
        return _Run(stage, replica, say).go(seconds)
    finally:
        replica.remove()


class _Run:
    def __init__(self, stage: Stage, replica: Replica, say: Say) -> None:
        self._stage = stage
        self._system = stage.container
        self._replica = replica
        self._say = say
        self._stop = threading.Event()
        self._rows: list[Row] = []
        self._reads: list[tuple[float, float, bool]] = []
        self._failed: list[str] = []
        self._lags: list[float] = []

    def go(self, seconds: float) -> dict[str, Any]:
        threads = [
            threading.Thread(target=self._until_stopped, args=(job,))
            for job in (self._write, self._read, self._sample)
        ]
        for thread in threads:
            thread.start()
        began = time.time()
        try:
            self._stop.wait(seconds / 3)
            self._say("the replica stops")
            stopped_at = time.time()
            self._replica.stop()
            self._stop.wait(seconds / 3)
            self._say("the replica comes back")
            back_at = time.time()
            self._replica.start()
            self._stop.wait(seconds / 3)
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
        written_for = time.time() - began
        caught_up = wait_until(self._same_rows, _CATCH_UP_SECONDS)
        return self._document(written_for, stopped_at, back_at, caught_up=caught_up)

    def _until_stopped(self, job: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                job()
            except sa.exc.SQLAlchemyError as error:
                self._failed.append(f"{job.__name__}: {error}".partition("\n")[0][:200])

    def _write(self) -> None:
        now = self._system.clock.now()
        events = []
        for number in range(_BATCH):
            task = str(uuid.uuid4())
            events.append(
                UsageEvent(
                    id=event_id(task, usage_line(SKU), now),
                    customer=CUSTOMER.format(number % _CUSTOMERS),
                    sku=SKU,
                    line=usage_line(SKU),
                    outcome=Outcome.SUCCEEDED,
                    quantity=1,
                    amount_microcredits=1_000_000,
                    task_id=task,
                    currency="USD",
                )
            )
        self._system.writer.write([event.to_wire() for event in events])
        self._rows += [
            Row(customer=event.customer, task=event.task_id, amount=event.amount_microcredits)
            for event in events
        ]

    def _read(self) -> None:
        period = month_of(self._system.clock.now())
        customer = CUSTOMER.format(len(self._reads) % _CUSTOMERS)
        began = time.time()
        as_of = self._system.as_of()
        self._system.usage_read.total(customer, period)
        self._system.receipts_read.lines(customer, period, limit=100)
        self._reads.append((began, time.time() - began, as_of is not None and as_of.replica))
        self._stop.wait(_SAMPLE_SECONDS)

    def _sample(self) -> None:
        """How long the replica takes to have what the primary has written by now."""
        self._stop.wait(_SAMPLE_SECONDS)
        with self._system.engine.connect() as connection:
            written = connection.execute(_WRITTEN).scalar_one()
        began = time.monotonic()
        with self._system.read_engine.connect() as connection:
            while not self._stop.is_set() and time.monotonic() - began < _CATCH_UP_SECONDS:
                answer = connection.execute(_REPEATED, {"written": written}).scalar_one()
                if answer is None or (answer is False and not self._replica.answers()):
                    return
                if answer:
                    self._lags.append(time.monotonic() - began)
                    return

    def _same_rows(self) -> bool:
        with sa.create_engine(
            self._replica.url.replace("postgresql://", "postgresql+psycopg://")
        ).connect() as connection:
            count = connection.execute(sa.text("SELECT count(*) FROM usage_events")).scalar_one()
        return bool(count == len(self._stage.rows()))

    def _document(
        self, written_for: float, stopped_at: float, back_at: float, *, caught_up: bool
    ) -> dict[str, Any]:
        logged = self._stage.rows()
        written = {row.task for row in self._rows}
        found = books([], logged, {}).document() | {
            "lost": len(written - {row.task for row in logged}),
            "unknown": 0,
            "admitted": len(written),
        }
        away = [each for each in self._reads if stopped_at <= each[0] < back_at]
        with_it = [each for each in self._reads if each[0] < stopped_at]
        return {
            "books": found,
            "log_complete": caught_up,
            "rows_per_second": round(len(logged) / written_for),
            "lag_p50_ms": round(percentile(self._lags, 50) * 1000, 1),
            "lag_p99_ms": round(percentile(self._lags, 99) * 1000, 1),
            "lag_samples": len(self._lags),
            "reads_with_replica": len(with_it),
            "of_them_by_replica": sum(each[2] for each in with_it),
            "read_p50_ms": round(percentile([each[1] for each in with_it], 50) * 1000, 1),
            "read_p99_ms": round(percentile([each[1] for each in with_it], 99) * 1000, 1),
            "reads_while_away": len(away),
            "of_them_by_primary": sum(not each[2] for each in away),
            "slowest_read_seconds": round(max((each[1] for each in self._reads), default=0), 3),
            "failed": len(self._failed),
            "failures": sorted(set(self._failed))[:3],
        }
