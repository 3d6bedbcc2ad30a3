"""Recovery of dead processes' leases: their runs are settled, and the leases given back."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import structlog

from billing.core.credit_lease import LeasedBatch, LeasedRun
from billing.core.errors import WeighbridgeError
from billing.core.failpoints import reach
from billing.core.reservation import ReleaseCause
from billing.metering.lease_flusher import BATCH_RUNS
from billing.metering.settlement_amounts import decided_or_asked
from billing.quota.port import LeaseStore
from billing.transport.journal import EventKeeper
from billing.transport.lease_wal import AbandonedSegment, LeaseWal
from billing.transport.lease_wal_entry import LeaseWalEntry

_log = structlog.get_logger(__name__)

CHECK_SECONDS: Final = 1.0


class LeaseRecovery:
    """Watches for segments of dead processes. Several relays of a node may do so at once.

    Args:
        wal: This node's log of runs under leases.
        store: The quota store.
        journal: Second copies of what is in the outbox.
        seconds: Seconds that only grow.
    """

    def __init__(
        self,
        wal: LeaseWal,
        store: LeaseStore,
        journal: EventKeeper,
        *,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wal = wal
        self._store = store
        self._journal = journal
        self._seconds = seconds
        self._next = seconds()

    def check(self) -> int:
        """Settle what dead processes have not, at most once a second.

        Returns:
            How many runs the store was given; those it knew already included.

        Raises:
            QuotaUnavailable: The store did not answer; the rest waits.
            WeighbridgeError: It refused a batch; the rest waits.
            OSError: The disk refused.
        """
        if self._seconds() < self._next:
            return 0
        self._next = self._seconds() + CHECK_SECONDS
        with self._wal.abandoned() as segments:
            return self._settle(segments) if segments else 0

    def _settle(self, segments: Sequence[AbandonedSegment]) -> int:
        settled = 0
        reach("left.before_settle")
        # Of all segments first: a lease must not be given back while one of them has runs of it.
        for batch in _batches(entry for segment in segments for entry in segment.entries):
            (answer,) = self._store.settle_leased([batch])
            reach("left.after_settle")
            if isinstance(answer, WeighbridgeError):
                raise answer
            self._journal.append(decided_or_asked(batch, answer))
            settled += len(batch.runs)
        leases = {lease for segment in segments for lease in segment.leases}
        for customer, lease_id in sorted(leases):
            self._store.release(customer, lease_id, ReleaseCause.WORKER_LOST, None)
        reach("left.after_release")
        for segment in segments:
            segment.finish()
        if settled or leases:
            _log.info(
                "abandoned_leases_settled",
                runs=settled,
                leases=len(leases),
                money="a process ended without a chance to settle these runs; what it had "
                "settled is not counted again",
            )
        return settled


def _batches(entries: Iterable[LeaseWalEntry]) -> list[LeasedBatch]:
    by_lease: defaultdict[tuple[str, str], list[LeasedRun]] = defaultdict(list)
    for entry in entries:
        run = LeasedRun(promised_microcredits=entry.promised_microcredits, events=entry.events)
        by_lease[entry.customer, entry.lease_id].append(run)
    return [
        LeasedBatch(
            customer=customer, lease_id=lease_id, runs=tuple(runs[start : start + BATCH_RUNS])
        )
        for (customer, lease_id), runs in by_lease.items()
        for start in range(0, len(runs), BATCH_RUNS)
    ]
