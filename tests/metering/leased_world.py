"""A meter whose SKUs are leased, with the node's disk, on a quota store in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from memory_leases import MemoryLeaseStore
from meter_fakes import CREDIT, HOLD_TTL_SECONDS, Died, World, make_facts, make_sku

from billing.core.admission import Admission
from billing.core.credit_lease import BatchSettlement, LeasedBatch, LeaseGrant, LeaseRequest
from billing.core.errors import QuotaUnavailable, WeighbridgeError
from billing.core.reservation import HoldRequest, ReleaseCause, ReleaseOutcome
from billing.core.sku import AdmissionPolicy, Sku
from billing.core.usage_event import UsageEvent
from billing.metering.lease_manager import LeaseManager
from billing.metering.lease_recovery import LeaseRecovery
from billing.metering.meter import Meter
from billing.transport.lease_wal import LeaseWal

WINDOW_SECONDS = 3


class FlakyLeases:
    """A ``LeaseStore`` whose next call is lost (``before``), or whose answer is (``after``)."""

    def __init__(self, memory: MemoryLeaseStore) -> None:
        self._memory = memory
        self.calls: list[str] = []
        self.fails: dict[str, str] = {}
        self.is_down = False

    def lease(self, request: LeaseRequest) -> LeaseGrant:
        return self._call("lease", lambda: self._memory.lease(request))

    def settle_leased(
        self, batches: Sequence[LeasedBatch]
    ) -> list[BatchSettlement | WeighbridgeError]:
        return self._call("settle", lambda: self._memory.settle_leased(batches))

    def release(
        self, customer: str, task_id: str, cause: ReleaseCause, event: UsageEvent | None
    ) -> ReleaseOutcome:
        return self._call("release", lambda: self._memory.release(customer, task_id, cause, event))

    def _call(self, verb: str, call: Callable[[], Any]) -> Any:
        self.calls.append(verb)
        when = "before" if self.is_down else self.fails.pop(verb, "")
        if when in ("before", "die before"):
            raise Died if when == "die before" else QuotaUnavailable("no answer")
        answer = call()
        if when:
            raise Died if when == "die after" else QuotaUnavailable("no answer")
        return answer


class LeasedWorld(World):
    """As ``World``, with leased SKUs and a node whose processes can be killed.

    A process that is killed keeps its flock in these tests, which are one process; ``kill`` lets it
    go as the kernel does.
    """

    memory: MemoryLeaseStore
    memory_type = MemoryLeaseStore

    def __init__(self, folder: Path, *skus: Sku, credits: int = 10_000) -> None:  # noqa: A002 - the word of the field
        self.folder = folder
        self.leases: LeaseManager
        self.book: LeaseWal
        super().__init__(*(skus or (leased(),)), credits=credits)
        self.store = self.flaky

    def another_process(self) -> Meter:
        self.flaky = FlakyLeases(self.memory)
        self.book = self.new_book()
        self.leases = self.new_leases(self.flaky, self.book)
        self.store = self.flaky
        return Meter(
            quota=self.quota,
            skus=self.sku,
            refresh=self.books.refresh,
            publisher=self.publisher,
            journal=self.journal,
            spool=self.spool,
            clock=self.clock,
            hold_ttl_seconds=HOLD_TTL_SECONDS,
            currency="USD",
            leases=self.leases,
        )

    def new_book(self) -> LeaseWal:
        return LeaseWal(self.folder / "slips", clock=self.clock)

    def new_leases(self, store: FlakyLeases, book: LeaseWal) -> LeaseManager:
        return LeaseManager(
            store,
            book,
            self.journal,
            name="node",
            window_seconds=WINDOW_SECONDS,
            ttl_seconds=HOLD_TTL_SECONDS + WINDOW_SECONDS,
            seconds=lambda: self.clock.now().timestamp(),
            in_background=False,
        )

    def kill(self) -> None:
        """The process is gone with its memory; the next one is another."""
        page = self.book._processes.get()
        page.abandon()
        self.meter = self.another_process()

    def find_left(self) -> int:
        """What the node's relay does about processes that died."""
        left = LeaseRecovery(self.new_book(), FlakyLeases(self.memory), self.journal)
        return left.check()

    def warm_up(self, sku: str = "page-capture") -> None:
        """The first task in a while is admitted by itself; let that be over."""
        self.bill("warm-up", sku)
        assert self.memory.hold("acme", "warm-up") is not None

    def admit(self, task: str, sku: str = "page-capture", **more: Any) -> Admission:
        return self.meter.admit(make_facts(task), sku, None, **more)

    def bill(self, task: str, sku: str = "page-capture", **recorded: Any) -> Admission:
        admission = self.admit(task, sku)
        assert admission.admitted
        recorder = self.meter.recorder(admission.sku)
        if recorded:
            recorder.record(**recorded)
        self.meter.settle(admission, recorder)
        return admission

    def hold_all(self) -> HoldRequest:
        """A request for all that is available."""
        return HoldRequest(
            task_id="others",
            customer="acme",
            sku="page-capture",
            amount_microcredits=self.account.available_microcredits,
            ttl_seconds=HOLD_TTL_SECONDS,
        )

    def pass_seconds(self, seconds: float) -> None:
        self.clock.advance(timedelta(seconds=seconds))

    def billed(self) -> dict[str, int]:
        """Credits by task, of everything that was told of."""
        return {
            event.task_id: event.amount_microcredits // CREDIT
            for event in (*self.outbox, *self.publisher.events, *self.spool.events)
        }


def leased(name: str = "page-capture", **overrides: Any) -> Sku:
    return replace(make_sku(name, **overrides), admission=AdmissionPolicy.LEASED)
