"""A bench with real workers, a relay and a consumer, on the test's own names."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from celery import Celery
from celery.result import AsyncResult
from celery.states import READY_STATES
from live_app import make_live_app
from support import eventually

from billing.container import Container
from billing.postgres.schema import usage_events
from billing.reconciliation.invariants import Discrepancy
from billing.settings import Settings
from billing.transport.queue_depth import queue_depth

HERE = Path(__file__).parent
READY_SECONDS = 60
_PR_SET_PDEATHSIG = 1


def _die_with_the_tests() -> None:
    """Linux: a worker must not outlive a test run that was itself killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Worker:
    """A Celery worker in a process group of its own."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL main process and children, as a machine that vanishes does."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(60)

    def stop(self) -> None:
        """A warm shutdown; a kill if that takes too long."""
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


class Live:
    """Submits to real workers and looks at what became of it."""

    def __init__(self, settings: Settings, engine: sa.Engine, folder: Path) -> None:
        self.settings = settings
        self.engine = engine
        self.folder = folder
        self.container = Container(settings)
        self.app: Celery = make_live_app(settings)
        self._started = 0

    def task(self, name: str) -> Any:
        return self.app.tasks[f"live.{name}"]

    def environment(self, **overrides: str) -> dict[str, str]:
        s = self.settings
        assert s.database_url
        assert s.redis_url
        assert s.amqp_url
        return {
            **os.environ,
            # This checkout's packages, whatever is installed.
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])]),
            "WEIGHBRIDGE_LIVE_APP": "yes",
            "DATABASE_URL": s.database_url.get_secret_value(),
            "REDIS_URL": s.redis_url.get_secret_value(),
            "AMQP_URL": s.amqp_url.get_secret_value(),
            "WEIGHBRIDGE_LOCAL_DIR": str(s.local_dir),
            "WEIGHBRIDGE_SPOOL_DIR": str(s.spool_dir),
            "WEIGHBRIDGE_REDIS_PREFIX": s.redis_prefix,
            "WEIGHBRIDGE_USAGE_EXCHANGE": s.usage_exchange,
            "WEIGHBRIDGE_USAGE_QUEUE": s.usage_queue,
            "WEIGHBRIDGE_TASK_QUEUE": s.task_queue,
            "WEIGHBRIDGE_QUARANTINE_SECONDS": "0",
            "WEIGHBRIDGE_DEFER_SECONDS": "1",
            "WEIGHBRIDGE_RELAY_LEASE_SECONDS": str(s.relay_lease_seconds),
            **overrides,
        }

    def start_worker(self, pool: str = "prefork", concurrency: int = 2, **env: str) -> Worker:
        self._started += 1
        log = self.folder / f"worker{self._started}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [
                    sys.executable, "-m", "celery", "-A", "live_app", "worker",
                    "--pool", pool, "--concurrency", str(concurrency), "-l", "INFO", "-E",
                    "--without-mingle", "--without-gossip",
                    "-n", f"{self.settings.redis_prefix}.{self._started}@localhost",
                ],
                env=self.environment(**env), cwd=self.folder, stdout=out, stderr=out,
                start_new_session=True, preexec_fn=_die_with_the_tests,  # noqa: PLW1509 - one system call, no lock taken
            )  # fmt: skip
        return Worker(process, log)

    @contextmanager
    def worker(self, pool: str = "prefork", concurrency: int = 2, **env: str) -> Iterator[Worker]:
        worker = self.start_worker(pool, concurrency, **env)
        try:
            self.await_ready(worker)
            yield worker
        finally:
            worker.stop()

    def await_ready(self, worker: Worker) -> None:
        def ready() -> bool:
            assert worker.process.poll() is None, f"the worker ended:\n{worker.text[-3000:]}"
            return " ready." in worker.text

        eventually(ready, timeout=READY_SECONDS, message="the worker is ready")

    @contextmanager
    def process(self, *arguments: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
        """A ``python`` with arguments, in a process group of its own; killed at the end."""
        self._started += 1
        log = self.folder / f"process{self._started}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, *arguments], env=self.environment(**env), cwd=self.folder,
                stdout=out, stderr=out, start_new_session=True, preexec_fn=_die_with_the_tests,  # noqa: PLW1509 - one system call, no lock taken
            )  # fmt: skip
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)

    def reached(self) -> list[str]:
        """The fail points at which a process died."""
        file = self.settings.spool_dir / "failpoints"
        return file.read_text().split() if file.exists() else []

    def await_done(self, results: Sequence[AsyncResult], timeout: float = 60) -> None:
        """Until every task has succeeded or failed."""
        waiting = {result.id: result for result in results}

        def done() -> bool:
            for task_id, result in list(waiting.items()):
                if result.state in READY_STATES:
                    del waiting[task_id]
            return not waiting

        eventually(done, timeout=timeout, interval=0.1, message="every task is done")

    def trace(self, word: str = "") -> list[str]:
        file = self.settings.spool_dir / "trace"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line for line in lines if word in line]

    def sweep(self) -> int:
        """What beat's sweeper does."""
        return len(self.container.quota.expire(1000))

    def drain(self) -> None:
        """Relay and consume until nothing is on its way."""
        relay = self.container.relay()
        stop = threading.Event()
        eventually(
            lambda: relay.run_once() == 0 and self.container.outbox.length() == 0, timeout=30
        )

        def consumed() -> bool:
            # It gives up after a second without a message, which on a busy machine is no proof.
            self.container.consumer().run(stop, idle_exit=True)
            depth = queue_depth(self.container.broker_url, self.container.settings.usage_queue)
            return depth is not None and depth.ready == 0

        eventually(consumed, timeout=30)

    def events(self) -> list[Any]:
        """The log, oldest first."""
        with self.engine.connect() as connection:
            return list(connection.execute(sa.select(usage_events).order_by("logged_at", "line")))

    def lines(self) -> list[tuple[str, str, int]]:
        return [(row.line, row.outcome, row.amount_microcredits) for row in self.events()]

    def discrepancies(self) -> list[Discrepancy]:
        return self.container.invariant_checks.run(self.container.clock.now() - timedelta(days=1))

    def settled_and_held(self, customer: str = "acme") -> tuple[int, int]:
        account = self.container.quota.account(customer)
        assert account is not None
        return account.settled_microcredits, account.held_microcredits

    def await_idle(self, customer: str = "acme", timeout: float = 30) -> None:
        """Until no hold of the customer is open."""
        eventually(
            lambda: not self.container.quota.open_holds(customer),
            timeout=timeout,
            message=f"no open hold of {customer}",
        )

    def close(self) -> None:
        self.container.close()
        self.app.metering.container.close()
        self.app.close()
