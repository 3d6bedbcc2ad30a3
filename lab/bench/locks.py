"""What PostgreSQL's backends wait for, looked at many times a second by a thread."""

from __future__ import annotations

import threading
from collections import Counter
from types import TracebackType
from typing import Final, Self

import sqlalchemy as sa

_PERIOD_SECONDS: Final = 0.04
_ACTIVE: Final = sa.text(
    "SELECT coalesce(wait_event_type, 'none'), wait_event FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'active'"
)
_DEADLOCKS: Final = sa.text(
    "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
)


class LockSampler:
    """Looks while it is entered; what it saw stays.

    Attributes:
        active: Backends found at work, each time it looked counted anew.
        waiting: Of those, which lock they waited for (a row's is ``transactionid`` or ``tuple``).
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.active = 0
        self.waiting: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._stop.clear()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _look(self) -> None:
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not self._stop.wait(_PERIOD_SECONDS):
                for kind, event in connection.execute(_ACTIVE):
                    self.active += 1
                    if kind == "Lock":
                        self.waiting[event] += 1

    def told(self) -> str:
        """For people."""
        share = sum(self.waiting.values()) / (self.active or 1)
        kinds = ", ".join(f"{name} {times}" for name, times in self.waiting.most_common())
        return (
            f"{share:.1%} of {self.active} looks at a working backend found it waiting for a lock"
            + (f" ({kinds})" if kinds else "")
        )


def deadlocks(engine: sa.Engine) -> int:
    """How many this database has ever had."""
    with engine.connect() as connection:
        return int(connection.execute(_DEADLOCKS).scalar_one())
