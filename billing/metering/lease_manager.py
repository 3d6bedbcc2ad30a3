"""A process's leases, from which it admits tasks without asking the store.

The way of a leased run: its credits are taken from the lease in memory, its events are written to
the node's disk before the task is acknowledged, and the store settles many such runs at once,
moments later, by a thread of this process. If the process dies in between, the node's relay finds
the entries and settles them (``billing.metering.lease_recovery``).
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog

from billing.core.credit_lease import (
    LEASE_PREFIX,
    Lease,
    LeasedAdmission,
    LeasedRun,
    LeaseOutcome,
    wish_of,
)
from billing.core.errors import QuotaUnavailable, WeighbridgeError
from billing.core.failpoints import reach
from billing.core.usage_event import UsageEvent
from billing.metering.lease_flusher import FLUSH_RUNS, LeaseFlusher
from billing.quota.port import LeaseStore
from billing.transport.journal import EventKeeper
from billing.transport.lease_wal import LeaseWal

_log = structlog.get_logger(__name__)

LINGER_SECONDS: Final = 0.2
"""How long runs gather before they are settled: a lost node can lose that much usage."""
_TICK_SECONDS: Final = 0.5
"""How much later than its window an idle lease is given back, at most."""
_IDLE_SECONDS: Final = 60.0
_FAILURE_SECONDS: Final = (0.1, 2.0)
_CLOSE_SECONDS: Final = 5.0


@dataclass(slots=True, eq=False)
class _Demand:
    """What this process wants of one customer and SKU."""

    lease: Lease | None = None
    last_used: float = float("-inf")
    exact_until: float = float("-inf")
    returned: bool = False
    asking: threading.Lock = field(default_factory=threading.Lock)

    def is_wanted(self, now: float, window: float) -> bool:
        """Whether a lease is worth asking for: not for the first task in a while."""
        if now < self.exact_until:
            return False
        return self.lease is not None or now - self.last_used < window


_boot_seconds: Final[Callable[[], float]] = partial(
    time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
)
"""Seconds that also pass while the machine is suspended: a lease must not outsleep its time."""


class LeaseManager:
    """One process's leases. Safe to use from several threads.

    Args:
        store: The quota store.
        wal: This node's log of runs under leases.
        journal: Second copies of what is in the outbox.
        name: Begins the ids of this process's leases, for who looks at them.
        window_seconds: A process asks again after this long: the longest that a suspension,
            or a budget that is used up, goes unnoticed.
        ttl_seconds: How long the store keeps a lease after the last request; longer than any run.
        seconds: The process's clock for that.
        in_background: Whether a thread settles; else ``flush`` has to be called.
    """

    def __init__(
        self,
        store: LeaseStore,
        wal: LeaseWal,
        journal: EventKeeper,
        *,
        name: str,
        window_seconds: float,
        ttl_seconds: int,
        seconds: Callable[[], float] = _boot_seconds,
        in_background: bool = True,
    ) -> None:
        self._store = store
        self._wal = wal
        self._name = name
        self._window = window_seconds
        self._ttl_seconds = ttl_seconds
        self._seconds = seconds
        self._in_background = in_background
        self._lock = threading.Lock()
        self._flusher = LeaseFlusher(store, wal, journal, self._lock)
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._demands: dict[tuple[str, str], _Demand] = {}
        self._draining: list[Lease] = []
        self._dropped: deque[tuple[Lease, int]] = deque()
        self._trouble = ""

    @property
    def waiting(self) -> int:
        """Runs that the store has not settled yet."""
        return self._flusher.waiting

    def flush(self) -> int:
        """Settle what has gathered; see ``LeaseFlusher.flush``."""
        return self._flusher.flush()

    def admit(self, customer: str, sku: str, amount: int) -> LeasedAdmission | None:
        """Take what one run may cost from a lease.

        Args:
            customer: Who pays.
            sku: What it is sold as.
            amount: Microcredits.

        Returns:
            The admission, to be given to ``end``; None where the store has to be asked for
            this task by itself.

        Raises:
            QuotaUnavailable: The store did not answer, and nothing is leased.
        """
        demand = self._demands.get((customer, sku))
        if demand is not None:
            leased = self._take(demand, amount)
            if leased is not None:
                return leased
        return self._ask_first(customer, sku, amount)

    def end(self, leased: LeasedAdmission, events: Sequence[UsageEvent]) -> None:
        """End a run: its events are on the disk when this returns, and will be settled.

        A repeat for the same admission completes one that was interrupted; other events are then
        not settled.

        Args:
            leased: The run's.
            events: One per line, each with the amount it should cost, that of its SKU first. None:
                the run ends without a word, and its credits are free again.

        Raises:
            OSError: The disk refused; nothing will be charged, and the task must not be
                acknowledged.
        """
        if leased.run is None and not events:
            self._end_quietly(leased)
            return
        if leased.run is None:
            asked = sum(event.amount_microcredits for event in events)
            wires = tuple(event.to_wire() for event in events)
            with self._lock:
                promised = 0
                if not leased.ended:
                    leased.ended = True
                    promised = leased.lease.end(leased.held, asked)
            leased.run = LeasedRun(
                promised_microcredits=promised, events=tuple(events), wires=wires
            )
        self._flusher.put(leased, leased.run)
        self._start_thread()
        if not self._wake.is_set():
            self._wake.set()

    def _end_quietly(self, leased: LeasedAdmission) -> None:
        with self._lock:
            if not leased.ended:
                leased.ended = True
                leased.lease.end(leased.held, 0)

    def give_back(self, *, all_of_it: bool = False) -> None:
        """Give back what leases have free that nothing was admitted from for a window.

        Args:
            all_of_it: Also of those that are in use.

        Raises:
            QuotaUnavailable: The store did not answer; leases that nobody renews expire.
        """
        self._collect()
        now = self._seconds()
        for name, demand in list(self._demands.items()):
            with self._lock:
                lease = demand.lease
                if lease is None and now - demand.last_used > _IDLE_SECONDS:
                    del self._demands[name]
            if lease is None or (now < lease.admits_until and not all_of_it):
                continue
            # Somebody who is asking for more wants nothing to be given back.
            if (not demand.returned or not lease.kept) and demand.asking.acquire(blocking=False):
                try:
                    self._return(demand, lease)
                finally:
                    demand.asking.release()
        with self._lock:
            ended = [lease for lease in self._draining if not lease.kept]
        for lease in ended:
            self._returned(lease)
            with self._lock:
                self._draining.remove(lease)

    def close(self) -> None:
        """Settle everything, give everything back. The relay settles what cannot be settled now."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)
        try:
            while self.flush():
                pass
            self.give_back(all_of_it=True)
        except WeighbridgeError as error:
            _log.warning(
                "leases_not_given_back",
                runs=self.waiting,
                money="nothing is lost: this node's relay settles the runs and gives them back",
                error=str(error),
            )
        self._wal.close()

    # -- admission ---------------------------------------------------------------------------------

    def _take(self, demand: _Demand, amount: int) -> LeasedAdmission | None:
        now = self._seconds()
        with self._lock:
            lease = demand.lease
            if lease is None or not lease.admit(amount, now):
                return None
            demand.last_used = now
        leased = LeasedAdmission(lease, amount, self._dropped)
        reach("lease.admitted")
        return leased

    def _ask_first(self, customer: str, sku: str, amount: int) -> LeasedAdmission | None:
        now = self._seconds()
        with self._lock:
            demand = self._demands.setdefault((customer, sku), _Demand())
            is_wanted = demand.is_wanted(now, self._window)
            demand.last_used = now
        if not is_wanted:
            return None
        with demand.asking:
            # While this thread waited, another may have got enough for both.
            leased = self._take(demand, amount)
            if leased is None and now >= demand.exact_until:
                self._ask(demand, customer, sku, amount)
                leased = self._take(demand, amount)
            if leased is None:
                demand.exact_until = now + self._window
        return leased

    def _ask(self, demand: _Demand, customer: str, sku: str, amount: int) -> None:
        self._collect()
        for _ in range(2):
            with self._lock:
                lease = demand.lease
                if lease is None or lease.ended:
                    if lease is not None:
                        self._draining.append(lease)
                        demand.lease = None
                    lease = Lease(customer, sku, self._new_id())
                request = lease.request(wish_of(lease.used, amount), amount, self._ttl_seconds)
            if request.number == 1 and not self._announce(lease):
                return
            asked_at = self._seconds()
            demand.lease, demand.returned = lease, False
            reach("lease.before")
            grant = self._store.lease(request)
            reach("lease.after")
            with self._lock:
                lease.granted(grant, asked_at + self._window)
            self._start_thread()
            if grant.outcome is not LeaseOutcome.ENDED:
                return

    def _announce(self, lease: Lease) -> bool:
        try:
            self._wal.announce(lease.customer, lease.lease_id)
        except OSError as error:
            self._say(
                "leases_not_writable",
                money="tasks are admitted one by one, and settled in Redis at once",
                remedy="free or repair the disk of WEIGHBRIDGE_SPOOL_DIR",
                error=str(error),
            )
            return False
        return True

    def _new_id(self) -> str:
        return f"{LEASE_PREFIX}{self._name}:{os.getpid()}:{secrets.token_hex(6)}"

    def _return(self, demand: _Demand, lease: Lease) -> None:
        """Give back what is free; the caller has ``asking``."""
        is_over = self._returned(lease)
        demand.returned = True
        if is_over:
            demand.lease = None

    def _returned(self, lease: Lease) -> bool:
        """Give back what is free; whether that was the end of it."""
        with self._lock:
            request = lease.request(0, 0, self._ttl_seconds)
            lease.admits_until = 0.0
        grant = self._store.lease(request)
        reach("lease.returned")
        with self._lock:
            lease.granted(grant, 0.0)
        is_over = request.keep_microcredits == 0
        if is_over:
            self._wal.forget(lease.lease_id)
        return is_over

    def _collect(self) -> None:
        """Take back what nobody ended: a task that was admitted and then did not run."""
        while self._dropped:
            lease, amount = self._dropped.popleft()
            with self._lock:
                lease.end(amount, 0)

    # -- the thread --------------------------------------------------------------------------------

    def _start_thread(self) -> None:
        if self._thread is not None or not self._in_background:
            return
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name="weighbridge-leases", daemon=True
                )
                self._thread.start()

    def _work(self) -> None:
        pause, longest = _FAILURE_SECONDS
        while not self._stop.is_set():
            self._wake.wait(min(self._window / 4, _TICK_SECONDS))
            self._wake.clear()
            self._stop.wait(LINGER_SECONDS if self.waiting else 0)
            try:
                while self.flush() >= FLUSH_RUNS:
                    pass
                self.give_back()
                self._wal.tidy()
            except Exception as error:  # noqa: BLE001 - a thread that dies here would settle nothing more
                self._after_failure(error)
                self._stop.wait(pause)
                self._wake.set()
                pause = min(2 * pause, longest)
            else:
                pause, self._trouble = _FAILURE_SECONDS[0], ""

    def _after_failure(self, error: Exception) -> None:
        is_known = isinstance(error, QuotaUnavailable | OSError)
        self._say(
            "leased_runs_waiting" if is_known else "lease_manager_failed",
            runs=self.waiting,
            money="nothing is lost: they are on this node's disk until Redis has settled them",
            remedy="bring Redis back" if is_known else "report it with the traceback",
            error=str(error),
            exc_info=None if is_known else error,
        )

    def _say(self, event: str, **more: object) -> None:
        """Once, not at every attempt."""
        if event != self._trouble:
            _log.error(event, **more)
        self._trouble = event
