"""PostgreSQL: killed in the middle of a batch, killed after its COMMIT, too slow, disk full."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import psycopg
import sqlalchemy as sa

from billing.core.event_ids import event_id
from billing.core.usage_event import usage_line
from billing.devtools.embedded_servers.access import server_user
from billing.usage_log.copy_fields import COLUMNS
from lab.chaos.catalogue import PROBE
from lab.chaos.errors import ChaosError
from lab.chaos.faults.base import Fault, Heard, Spec
from lab.chaos.ground import CONSUMER_1, CONSUMER_2
from lab.chaos.proxy import Mode
from lab.chaos.schedule import Kind
from lab.chaos.servers import CONSUME, POSTGRES, RABBITMQ
from workers.billing_header import HEADER, BillingHeader

_SECONDS: Final = 15.0
_COPIED: Final = sa.text(
    "SELECT coalesce(max(progress.bytes_processed), 0) FROM pg_stat_progress_copy AS progress"
    " JOIN pg_stat_activity AS activity USING (pid) WHERE activity.wait_event = 'transactionid'"
)
_IN_THE_WAY: Final = f"""
    INSERT INTO usage_events (id, {", ".join(name for name in COLUMNS if name != "id")})
    SELECT %s, {", ".join(name for name in COLUMNS if name != "id")} FROM usage_events LIMIT 1
"""  # noqa: S608 - made of the names of columns only
_ATTEMPTS: Final = 3
_STATEMENT_TIMEOUT: Final = "canceling statement due to statement timeout"
_DISK_FULL: Final = "No space left on device"


class KilledMidCopy(Fault):
    """SIGKILL while COPY is storing a batch: its rows are in the table, and half indexed."""

    def inject(self) -> None:
        """Make COPY wait in the middle of its rows, then kill.

        It waits at a row whose id somebody else has just stored, and not yet committed. Which id
        that is follows from the task, which is therefore chosen first.
        """
        self._copied = 0
        self.until(lambda: self.ground.log_rows() > 0, _SECONDS, "a row")
        for attempt in range(_ATTEMPTS):
            if attempt:
                # Who met a taken id leaves COPY alone for a while; a new process does not.
                self.ground.start_and_await(CONSUMER_1, CONSUMER_2)
            if self._killed():
                return
        raise ChaosError("no COPY was met in the middle of its rows")

    def heal(self) -> None:
        """Start it: it recovers from its write-ahead log."""
        if not self.ground.servers.alive(POSTGRES):
            self.ground.servers.start_one(POSTGRES)

    def hits(self) -> int:
        """Bytes that COPY had taken in. It counts rows only when the whole batch is stored."""
        return self._copied

    def _killed(self) -> bool:
        task, at = str(uuid4()), self.ground.container.clock.now()
        with psycopg.connect(self.ground.servers.direct_url(POSTGRES)) as blocker:
            taken = event_id(task, usage_line("page"), at)
            blocker.execute(_IN_THE_WAY.encode(), (taken,))
            header = {HEADER: BillingHeader(PROBE, at).to_message()}
            self.load.send("page", PROBE, task_id=task, headers=header)
            met = self.happens(self._is_copying, _SECONDS)
            if met:
                self.ground.servers.kill(POSTGRES)
            with suppress(psycopg.Error):
                blocker.rollback()
        return met

    def _is_copying(self) -> bool:
        with self.ground.container.engine.connect() as connection:
            self._copied = int(connection.execute(_COPIED).scalar_one())
        return self._copied > 0


class KilledUnacknowledged(Fault):
    """SIGKILL between a batch's COMMIT and its acknowledgement."""

    def inject(self) -> None:
        """Lose what consumers tell RabbitMQ; when rows have come nevertheless, kill PostgreSQL."""
        self._committed = 0
        self.ground.servers.proxy(RABBITMQ, CONSUME).set(Mode.DEAF)
        before = self.ground.log_rows()

        def committed() -> bool:
            self._committed = self.ground.log_rows() - before
            return self._committed > 0

        self.until(committed, _SECONDS, "a COMMIT")
        self.ground.servers.kill(POSTGRES)

    def heal(self) -> None:
        """The consumers' connections are reset: RabbitMQ delivers again what was not told."""
        met = self.ground.servers.proxy(RABBITMQ, CONSUME).heal()
        if not met.data_bytes:
            # No acknowledgement was on its way: then it did not hit.
            self._committed = 0
        self.ground.servers.start_one(POSTGRES)

    def hits(self) -> int:
        """Rows that were committed and whose acknowledgements were lost."""
        return self._committed


class StatementTimeout(Fault):
    """Every statement of a new session is cut off after a millisecond."""

    def inject(self) -> None:
        """Tell the database so, and end the sessions of the processes."""
        self._log = self.ground.servers.log_of(POSTGRES)
        self._from = self._log.stat().st_size
        self._alter("SET statement_timeout = '1ms'")

    def heal(self) -> None:
        """No time-out again."""
        self._alter("RESET statement_timeout")

    def hits(self) -> int:
        """Statements that PostgreSQL says it has cut off."""
        return self._log.read_text("utf-8", "replace")[self._from :].count(_STATEMENT_TIMEOUT)

    def _alter(self, what: str) -> None:
        url = self.ground.servers.direct_url(POSTGRES)
        with psycopg.connect(url, autocommit=True, options="-c statement_timeout=0") as admin:
            admin.execute(f"ALTER DATABASE weighbridge {what}".encode())
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = 'weighbridge' AND pid <> pg_backend_pid()"
            )


class DiskFull(Fault):
    """The log's partition of this month lies on a small disk, which is full."""

    def inject(self) -> None:
        """Move the partition to a tablespace on a small tmpfs; fill that."""
        if os.geteuid() != 0:
            raise ChaosError("a small disk can be mounted by root only; leave this fault out")
        self._heard = Heard(self.ground, CONSUMER_1, CONSUMER_2)
        self._disk = self.ground.folder / f"small-disk-{self.turn.number}"
        self._disk.mkdir()
        user = server_user()
        mounted(self._disk, "24m")
        space = self._disk / "space"
        space.mkdir(mode=0o700)
        _run("chown", user, str(space))
        self._do(f"CREATE TABLESPACE small LOCATION '{space}'")
        self._do(f"ALTER TABLE {self._partition()} SET TABLESPACE small")
        with suppress(OSError), (self._disk / "ballast").open("wb") as ballast:
            while True:
                ballast.write(b"\0" * 65_536)
                ballast.flush()

    def during(self) -> None:
        """Until PostgreSQL has refused a batch."""
        self.happens(lambda: self.hits() > 0, _SECONDS)

    def heal(self) -> None:
        """Room again, and the partition back to where it was."""
        with suppress(FileNotFoundError):
            (self._disk / "ballast").unlink()
        self._do(f"ALTER TABLE {self._partition()} SET TABLESPACE pg_default")
        self._do("DROP TABLESPACE small")
        unmounted(self._disk)

    def hits(self) -> int:
        """Batches that the consumers held because of it."""
        return self._heard.count(_DISK_FULL, "DiskFull")

    def _partition(self) -> str:
        return f"usage_events_{self.ground.container.clock.now():%Y_%m}"

    def _do(self, statement: str) -> None:
        url = self.ground.servers.direct_url(POSTGRES)
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute(statement.encode())


def _run(*command: str) -> None:
    done: Any = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    if done.returncode:
        raise ChaosError(f"{command[0]}: {done.stderr.strip()}")


def mounted(folder: Path, size: str) -> None:
    """Mount a tmpfs of that size."""
    _run("mount", "-t", "tmpfs", "-o", f"size={size},mode=0777", "tmpfs", str(folder))


def unmounted(folder: Path) -> None:
    """Unmount it."""
    _run("umount", "--lazy", str(folder))


def specs() -> list[Spec]:
    """Every fault of PostgreSQL."""
    return [
        Spec(
            Kind(name="postgres-killed-mid-copy", seconds=(0.5, 3.0)),
            "PostgreSQL is killed while COPY is storing a batch",
            KilledMidCopy,
        ),
        Spec(
            Kind(name="postgres-killed-unacknowledged", seconds=(0.5, 3.0)),
            "PostgreSQL is killed between a COMMIT and its acknowledgement",
            KilledUnacknowledged,
        ),
        Spec(
            Kind(name="postgres-statement-timeout", seconds=(2.0, 5.0)),
            "PostgreSQL cuts off every statement after a millisecond",
            StatementTimeout,
        ),
        Spec(
            Kind(name="postgres-disk-full", last=True, quick=False),
            "the disk of this month's partition is full",
            DiskFull,
        ),
    ]
