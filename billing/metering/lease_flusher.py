"""Settlement of runs under leases: on the node's disk first, then, in batches, in the store."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

import structlog

from billing.core.credit_lease import (
    BatchSettlement,
    Lease,
    LeasedAdmission,
    LeasedBatch,
    LeasedRun,
)
from billing.core.errors import WeighbridgeError
from billing.core.failpoints import reach
from billing.metering.settlement_amounts import decided_or_asked
from billing.quota.port import LeaseStore
from billing.transport.journal import EventKeeper
from billing.transport.lease_wal import LeaseSegment, LeaseWal
from billing.transport.lease_wal_entry import LeaseWalEntry
from billing.transport.settled_figures import Encodable, EncodedEvent

_log = structlog.get_logger(__name__)

BATCH_RUNS: Final = 100
"""Runs settled by one script: keeps the store free for others."""
FLUSH_RUNS: Final = 1_000
"""Runs settled in one round trip."""


class LeaseFlusher:
    """Runs of this process that the store has yet to settle. Safe to use from several threads.

    Args:
        store: The quota store.
        wal: This node's log of runs under leases.
        journal: Second copies of what is in the outbox.
        lock: What the leases' amounts are changed under.
    """

    def __init__(
        self, store: LeaseStore, wal: LeaseWal, journal: EventKeeper, lock: threading.Lock
    ) -> None:
        self._store = store
        self._wal = wal
        self._journal = journal
        self._lock = lock
        self._flushing = threading.Lock()
        # An ordered set: a run whose end was interrupted may be put in twice.
        self._queue: dict[LeasedAdmission, None] = {}
        self._journal_trouble = False

    @property
    def waiting(self) -> int:
        """Runs that the store has not settled yet."""
        return len(self._queue)

    def put(self, leased: LeasedAdmission, run: LeasedRun) -> None:
        """Write the run to the disk, and queue it. A repeat completes what was interrupted.

        Raises:
            OSError: The disk refused; nothing will be settled.
        """
        reach("slip.before")
        self._write(leased, run)
        reach("flush.before")
        with self._lock:
            if not leased.settled:
                self._queue[leased] = None

    def flush(self) -> int:
        """Settle in the store what has gathered.

        Returns:
            How many runs are settled.

        Raises:
            QuotaUnavailable: The store did not answer; what was not settled waits on the disk.
            WeighbridgeError: It refused a batch; that one waits, the others are settled.
        """
        with self._flushing:
            with self._lock:
                admissions = list(self._queue)[:FLUSH_RUNS]
            groups = _groups(admissions)
            if not groups:
                return 0
            answers = self._store.settle_leased([batch for batch, _ in groups])
            reach("flush.after")
            return self._settled(groups, answers)

    def _write(self, leased: LeasedAdmission, run: LeasedRun) -> None:
        if leased.segment is not None:
            return
        lease = leased.lease
        if not leased.line:
            leased.line = LeaseWalEntry(
                lease_id=lease.lease_id,
                customer=lease.customer,
                promised_microcredits=run.promised_microcredits,
                events=run.events,
            ).to_line(run.wires)
        try:
            leased.segment = self._wal.append(leased.line)
        except OSError:
            with self._lock:
                lease.pending -= run.promised_microcredits
                lease.free += run.promised_microcredits
            leased.run, leased.line = None, b""
            raise

    def _settled(
        self,
        groups: list[tuple[LeasedBatch, list[LeasedAdmission]]],
        answers: list[BatchSettlement | WeighbridgeError],
    ) -> int:
        refused: WeighbridgeError | None = None
        decided: list[EncodedEvent] = []
        done: list[LeasedAdmission] = []
        for (batch, admissions), answer in zip(groups, answers, strict=True):
            if isinstance(answer, WeighbridgeError):
                refused = answer
                continue
            decided += decided_or_asked(batch, answer)
            done += admissions
        self._keep(decided)
        with self._lock:
            for leased in done:
                self._queue.pop(leased, None)
                if not leased.settled and leased.run is not None:
                    leased.settled = True
                    leased.lease.settled(leased.run.promised_microcredits)
        for leased in done:
            if isinstance(leased.segment, LeaseSegment):
                self._wal.settled(leased.segment)
        if refused is not None:
            raise refused
        return len(done)

    def _keep(self, events: Sequence[Encodable]) -> None:
        """Second copies; their failure does not undo what is settled."""
        try:
            self._journal.append(events)
        except OSError as error:
            if not self._journal_trouble:
                _log.error(
                    "journal_not_writable",
                    money="nothing is lost unless Redis loses its data before the relay has sent "
                    "them",
                    remedy="free or repair the disk of WEIGHBRIDGE_SPOOL_DIR",
                    error=str(error),
                )
            self._journal_trouble = True
        else:
            self._journal_trouble = False


def _groups(admissions: list[LeasedAdmission]) -> list[tuple[LeasedBatch, list[LeasedAdmission]]]:
    """Runs by lease, at most ``BATCH_RUNS`` together."""
    by_lease: dict[Lease, list[LeasedAdmission]] = {}
    for leased in admissions:
        by_lease.setdefault(leased.lease, []).append(leased)
    groups = []
    for lease, found in by_lease.items():
        for start in range(0, len(found), BATCH_RUNS):
            some = found[start : start + BATCH_RUNS]
            runs = tuple(leased.run for leased in some if leased.run is not None)
            batch = LeasedBatch(customer=lease.customer, lease_id=lease.lease_id, runs=runs)
            groups.append((batch, some))
    return groups
