"""What every run needs: servers, a catalogue, processes of load, relay and consumer, the log."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import redis
import sqlalchemy as sa

from billing.container import Container
from billing.core.credits import MICROCREDITS_PER_CREDIT
from billing.core.errors import WeighbridgeError
from billing.devtools.embedded_servers.process import Process
from billing.settings import Settings
from lab.bench.ground import Ground, Say
from lab.scale.load import CUSTOMER, SKU
from lab.scale.verdict import Attempt, Row

_COMMAND: Final = ("-c", "from billing.cli.main import main; main()")
_AS_USERS_HAVE_IT: Final = ("redis_timeout_ms", "parent_redis_timeout_ms",
                            "publish_timeout_seconds", "quarantine_seconds")  # fmt: skip
_BEGIN_SECONDS: Final = 60.0
_END_SECONDS: Final = 90.0
_POLL_SECONDS: Final = 0.1
_ROWS: Final = sa.text(
    "SELECT customer_id, task_id, amount_microcredits FROM usage_events WHERE outcome = 'succeeded'"
)


class Stage:
    """Names and processes of one run on a ``Ground``.

    Args:
        ground: Servers; what is given in ``changed`` takes the place of some.
        name: Of the run.
        customers: How many.
        credits_each: Whole credits that each is given: its hard ceiling.
        changed: Settings of the run.
    """

    def __init__(
        self,
        ground: Ground,
        name: str,
        *,
        customers: int,
        credits_each: int,
        changed: dict[str, object],
    ) -> None:
        usual = {field: Settings.model_fields[field].default for field in _AS_USERS_HAVE_IT}
        self.settings = ground.settings(name).model_copy(update=usual | changed)
        self._ground = ground
        self.folder = ground.folder_of(name)
        self.container = ground.container(self.settings)
        self.customers = customers
        self.granted = credits_each * MICROCREDITS_PER_CREDIT
        self._files: list[Path] = []

    def set_up(self) -> None:
        """The SKU, the customers, their credits."""
        container = self.container
        container.catalog.add(
            SKU,
            unit="page",
            unit_price_microcredits=MICROCREDITS_PER_CREDIT,
            effective_from=container.clock.now(),
        )
        for number in range(self.customers):
            customer = CUSTOMER.format(number)
            container.customers.add(customer, customer)
            container.grants.grant(customer, self.granted, "scale")

    def command(self, *arguments: str, name: str = "") -> Process:
        """Start ``billing …`` with the run's settings."""
        return self._start(name or arguments[0], [*_COMMAND, *arguments])

    def load(self, processes: int, seconds: float, rate: float) -> list[Process]:
        """Start processes of load, each at ``rate`` tasks a second."""
        started = []
        for number in range(processes):
            file = self.folder / f"load{number}.jsonl"
            self._files.append(file)
            arguments = [str(file), str(seconds), str(rate), str(self.customers)]
            started.append(self._start(f"load{number}", ["-m", "lab.scale.load", *arguments]))
        # The time of a run begins when its load does, not when its processes are started.
        wait_until(
            lambda: all(file.exists() and file.stat().st_size for file in self._files),
            _BEGIN_SECONDS,
        )
        return started

    def attempts(self) -> list[Attempt]:
        """What the load met."""
        return [
            Attempt(**json.loads(line))
            for file in self._files
            for line in file.read_text("utf-8").splitlines()
        ]

    def rows(self) -> list[Row]:
        """Every charge in the log."""
        with self.container.engine.connect() as connection:
            return [
                Row(customer=customer, task=task, amount=amount)
                for customer, task, amount in connection.execute(_ROWS)
            ]

    def settle_down(self, tasks: set[str]) -> bool:
        """Wait until all these tasks are in the log and the outbox is empty; whether they are."""

        def done() -> bool:
            try:
                waiting = self.container.outbox.length()
            except (redis.RedisError, WeighbridgeError):
                return False
            return waiting == 0 and tasks <= {row.task for row in self.rows()}

        return wait_until(done, _END_SECONDS)

    def short_balances(self) -> dict[str, int]:
        """Customers whose account in Redis lacks something that the log has, and how much."""
        logged: dict[str, int] = {}
        for row in self.rows():
            logged[row.customer] = logged.get(row.customer, 0) + row.amount
        found = {}
        for number in range(self.customers):
            customer = CUSTOMER.format(number)
            account = self.container.quota.account(customer)
            if account is None:
                continue
            difference = logged.get(customer, 0) - account.settled_microcredits
            if difference:
                found[customer] = difference
        return found

    def _start(self, name: str, arguments: Sequence[str]) -> Process:
        log = self.folder / f"{name}.log"
        return self._ground.start(name, [sys.executable, *arguments], self.settings, log)


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Ask until it is so; whether it was in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def wait_for_end(processes: Sequence[Process], seconds: float) -> bool:
    """Wait until all have ended by themselves."""
    return wait_until(lambda: not any(each.alive for each in processes), seconds)


__all__ = ["Container", "Ground", "Say", "Stage", "wait_for_end", "wait_until"]
