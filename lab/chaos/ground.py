"""The ground of a run: servers behind proxies, two nodes of workers, consumers, beat, the driver.

Two nodes, each with a spool of its own: on node ``a`` the worker relays, as shipped; on node ``b``
a relay runs alone. Names of programs are those of ``PROGRAMS``.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Self

import sqlalchemy as sa
from celery import Celery
from pydantic import SecretStr

from billing.container import Container
from billing.devtools.embedded_servers import Endpoints
from billing.devtools.embedded_servers.launch import Say
from billing.devtools.embedded_servers.process import interrupts_deferred
from billing.postgres import migrations
from billing.server_urls import RESULT_DATABASE, sibling_database
from billing.settings import Settings
from lab.chaos import catalogue
from lab.chaos.app import make_app
from lab.chaos.bodies import TIME_LIMIT_SECONDS
from lab.chaos.processes import Program, Supervisor
from lab.chaos.servers import CONSUME, POSTGRES, RABBITMQ, REDIS, WATCH, WORK, Servers

WORKER_A: Final = "worker-a"
WORKER_B: Final = "worker-b"
RELAY_B: Final = "relay-b"
CONSUMER_1: Final = "consumer-1"
CONSUMER_2: Final = "consumer-2"
BEAT: Final = "beat"
_MOUNTS: Final = Path("/proc/mounts")
PROGRAMS: Final = (WORKER_A, WORKER_B, RELAY_B, CONSUMER_1, CONSUMER_2, BEAT)
NODES: Final = ("a", "b")
MAX_AGE_DAYS: Final = 400
"""Usage of both daylight-saving edges of the last year can still be told."""
_SILENCE_SECONDS: Final = 20.0
"""A worker at work writes several lines a second; one that hangs is killed, as a liveness probe
does. billiard's main process can hang for good when a child dies holding its counter's lock."""
HOLD_TTL_SECONDS: Final = TIME_LIMIT_SECONDS + 31


class Ground:
    """Everything a run stands on; a context manager that leaves nothing behind.

    Args:
        folder: For this run alone; gone afterwards.
        say: Takes lines about what is going on.
        keep: Leave logs and the file of truth in the folder.
    """

    def __init__(self, folder: Path, say: Say, *, keep: bool = False) -> None:
        self.folder = folder = folder.resolve()
        self.say = say
        self._keep = keep
        self.servers = Servers(folder / "servers", say)
        self.supervisor = Supervisor(folder / "processes", Path.cwd(), self._clear_failpoints)
        self.truth_file = folder / "truth"
        self._calmed: Counter[tuple[str, str]] = Counter()
        self.keep_record: set[str] = set()
        """Programs that die once only at each point, over all their lives."""
        self.hits: Counter[str] = Counter()
        """Fail points at which a process died, by name."""
        self.broken: list[str] = []
        """Disagreements that a fault itself has found."""
        self.container: Container
        self.app: Celery

    def __enter__(self) -> Self:
        try:
            self._clear_leftovers()
            self.folder.mkdir(parents=True, exist_ok=True)
            self.servers.start()
            migrations.upgrade(self.servers.url(POSTGRES, WATCH))
            self.container = self.system_on(WATCH)
            self.container.ensure_partitions()
            catalogue.put(self.container)
            self.app = make_app(self.driver_settings(), self.truth_file)
            # A submission fails at once where the broker is away, so that the load knows of it.
            self.app.conf.broker_transport_options = {
                "confirm_publish": True, "confirm_timeout": 5, "connect_timeout": 2,
                "read_timeout": 5, "write_timeout": 5,
            }  # fmt: skip
            self.supervisor.begin()
            for name in PROGRAMS:
                self.start(name)
            self.supervisor.await_ready(*PROGRAMS)
        except BaseException:
            self._clear_away()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._clear_away()

    # -- settings ------------------------------------------------------------------------------

    def settings(self, node: str, *, lane: str = WORK) -> Settings:
        """Settings of a process on a node that reaches the servers by a lane."""
        amqp_lane = WATCH if lane == WATCH else lane
        redis_url = self.servers.url(REDIS, WATCH if lane == WATCH else WORK)
        return Settings.model_construct(
            **{
                **Settings().model_dump(),
                "database_url": SecretStr(self.servers.url(POSTGRES, lane)),
                "redis_url": SecretStr(redis_url),
                "amqp_url": SecretStr(self.servers.url(RABBITMQ, amqp_lane)),
                "result_url": SecretStr(sibling_database(redis_url, RESULT_DATABASE)),
                "local_dir": self.folder,
                "spool_dir": self.spool_of(node),
                "redis_prefix": "chaos",
                "task_queue": "chaos.tasks",
                "usage_exchange": "chaos.usage",
                "usage_queue": "chaos.usage.log",
                "task_time_limit_seconds": TIME_LIMIT_SECONDS,
                "task_soft_time_limit_seconds": TIME_LIMIT_SECONDS,
                "hold_ttl_seconds": HOLD_TTL_SECONDS,
                "quarantine_seconds": 2,
                # Less than the quarantine, and short, so that leases are asked for and given back.
                "lease_seconds": 1,
                "defer_seconds": 1,
                "max_deferrals": 8,
                "publish_timeout_seconds": 3,
                "consumer_batch": 200,
                "relay_batch": 200,
                "event_max_age_days": MAX_AGE_DAYS,
                "relay_in_worker": node != "b",
                "provider": "ledger",
                # The checker wants to see what is wrong before it is put right.
                "reconcile_repairs": False,
                "failpoints": "",
            }
        )

    def driver_settings(self) -> Settings:
        """The driver's own: by the lane that is always good."""
        return self.settings("driver", lane=WATCH)

    def system_on(self, lane: str, node: str = "driver") -> Container:
        """Stores of this process; the caller closes them."""
        settings = self.settings(node, lane=lane)
        return Container(settings, endpoints=_endpoints(settings))

    def spool_of(self, node: str) -> Path:
        """A node's journal, spool and record of fail points."""
        return self.folder / "spool" / node

    # -- programs ------------------------------------------------------------------------------

    def start(self, name: str, *, failpoints: str = "", clock_offset: float = 0.0) -> None:
        """Start a program, or start it again as it is to be from now on."""
        program = self._program(name, failpoints, clock_offset)
        self.supervisor.keep(program)

    def start_and_await(self, *names: str, failpoints: str = "", clock_offset: float = 0.0) -> None:
        """As ``start``, for several; returns when they are at work."""
        for name in names:
            self.start(name, failpoints=failpoints, clock_offset=clock_offset)
        self.supervisor.await_ready(*names)

    def count_failpoints(self) -> Counter[str]:
        """Take the hits that were recorded since the last call; those points may fire again."""
        found: Counter[str] = Counter()
        for node in (*NODES, CONSUMER_1, CONSUMER_2):
            found += self._taken(node)
        self.hits += found
        return found

    def recorded(self, name: str) -> list[str]:
        """Points at which a program's node had deaths, since its record was last cleared."""
        file = self.spool_of(_node_of(name)) / "failpoints"
        return file.read_text().split() if file.exists() else []

    def amend(self, name: str) -> None:
        """A program runs as shipped from its next life on."""
        self.supervisor.amend(self._program(name, "", 0.0))

    def calm(self, name: str, point: str) -> None:
        """No more deaths of a program at a point: not in this life, nor in the next ones."""
        self.amend(name)
        node = _node_of(name)
        file = self.spool_of(node) / "failpoints"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as record:
            fcntl.flock(record, fcntl.LOCK_EX)
            # A name that is in the record already does not fire.
            record.write(f"{point}\n")
            self._calmed[node, point] += 1
        self.supervisor.await_ready(name)

    def _program(self, name: str, failpoints: str, clock_offset: float) -> Program:
        node = _node_of(name)
        lane = CONSUME if name.startswith("consumer") else WORK
        settings = self.settings(node, lane=lane)
        environment = dict(environment_of(settings)) | {
            "CHAOS_TRUTH": str(self.truth_file),
            "CHAOS_CLOCK_OFFSET": str(clock_offset),
            "WEIGHBRIDGE_FAILPOINTS": failpoints,
            "PYTHONUNBUFFERED": "1",
        }
        arguments, ready = _command(name, self.folder)
        return Program(
            name=name,
            arguments=[sys.executable, *arguments],
            environment=environment,
            ready=ready,
            silence_seconds=_SILENCE_SECONDS if name in (WORKER_A, WORKER_B) else 0,
        )

    def _clear_failpoints(self, name: str) -> None:
        """Before a start: a point recorded already would not fire again."""
        if name not in self.keep_record:
            self.hits += self._taken(_node_of(name))

    def _taken(self, node: str) -> Counter[str]:
        file = self.spool_of(node) / "failpoints"
        try:
            with file.open("r+") as record:
                fcntl.flock(record, fcntl.LOCK_EX)
                found = Counter(record.read().split())
                record.truncate(0)
        except FileNotFoundError:
            return Counter()
        for point in found:
            found[point] -= self._calmed.pop((node, point), 0)
        return +found

    # -- beginning and end ---------------------------------------------------------------------

    def _clear_leftovers(self) -> None:
        self.supervisor.end_leftovers()
        self.servers.remove()
        self._unmount()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _unmount(self) -> None:
        """Unmount small disks that a fault has left."""
        with suppress(OSError):
            mounts = [line.split()[1] for line in _MOUNTS.read_text().splitlines()]
            for mount in mounts:
                if Path(mount).is_relative_to(self.folder):
                    subprocess.run(["umount", "--lazy", mount], check=False)  # noqa: S603, S607 - ours

    def _clear_away(self) -> None:
        with interrupts_deferred():
            self.supervisor.close()
            if hasattr(self, "app"):
                self.app.close()
            if hasattr(self, "system"):
                self.container.close()
            self.servers.remove()
            self._unmount()
            if not self._keep:
                shutil.rmtree(self.folder, ignore_errors=True)

    # -- questions -----------------------------------------------------------------------------

    def log_rows(self) -> int:
        """How many rows the log has."""
        with self.container.engine.connect() as connection:
            query = sa.text("SELECT count(*) FROM usage_events")
            return int(connection.execute(query).scalar_one())

    def ends_in_log(self, task_id: str) -> str:
        """How a task ended according to the log; empty where it has nothing of it yet."""
        query = sa.text("SELECT outcome FROM usage_events WHERE task_id = :task ORDER BY 1 DESC")
        with self.container.engine.connect() as connection:
            return str(connection.execute(query, {"task": task_id}).scalar() or "")

    def since(self) -> datetime:
        """From when on books are compared: all there is."""
        return self.container.clock.now() - timedelta(days=MAX_AGE_DAYS)


def environment_of(settings: Settings) -> Mapping[str, str]:
    """Settings as the environment of a process. Prefixed names: they win over plain ones."""
    return {
        f"WEIGHBRIDGE_{name.upper()}": value.get_secret_value()
        if isinstance(value, SecretStr)
        else str(value)
        for name, value in settings
        if value is not None
    }


def _node_of(name: str) -> str:
    return {WORKER_A: "a", BEAT: "a", WORKER_B: "b", RELAY_B: "b"}.get(name, name)


def _command(name: str, folder: Path) -> tuple[list[str], str]:
    """The arguments after ``python``, and what the log says when it is at work."""
    if name.startswith("consumer"):
        return ["-m", "lab.chaos.consumer"], "consumer started"
    if name == RELAY_B:
        return ["-m", "billing.cli", "relay"], "relay_started"
    celery = ["-m", "celery", "-A", "lab.chaos.celery_app"]
    if name.startswith("beat"):
        return [*celery, "beat", "-l", "INFO", "-s", str(folder / name)], "starting"
    return (
        [
            *celery, "worker", "--concurrency", "2", "-l", "INFO", "--without-mingle",
            "--without-gossip", "-n", f"{name}@localhost",
        ],
        " ready.",
    )  # fmt: skip


def _endpoints(settings: Settings) -> Endpoints:
    def url(given: SecretStr | None) -> str:
        assert given is not None  # noqa: S101 - the ground names every server
        return given.get_secret_value()

    return Endpoints(
        url(settings.database_url),
        url(settings.redis_url),
        url(settings.amqp_url),
        url(settings.result_url),
    )
