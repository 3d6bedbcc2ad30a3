"""Slips: what runs under a lease were, on this node's disk before they are acknowledged.

The store is told of such runs in batches, some moments later. What was not told when its process
died is found here: every process appends to segments of its own and holds their flock for as long
as it lives, so **a segment whose flock is free is of a process that is dead**, and whoever takes it
settles what it says. A slip that was settled already does no harm then; it is known by its mark.

A segment begins with the leases that its process has, so that they can be given back for it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import orjson
import structlog

from billing.core.clock import Clock, to_ms
from billing.core.credits import check_microcredits
from billing.core.errors import InvalidValue
from billing.core.process_local import ProcessLocal
from billing.core.usage_event import InvalidEvent, UsageEvent
from billing.core.usage_event_json import from_wire
from billing.transport.segment_files import fsync_directory, held

_log = structlog.get_logger(__name__)

SUFFIX: Final = ".slips"
UNREADABLE_SUFFIX: Final = ".unreadable"
_NO_ROOM_IN_ADVANCE: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
"""What a file system says that cannot; its syncs take longer, and are as good."""
_ATTEMPTS: Final = 20
"""New segments tried by one append; each failure is somebody who took it for a dead process's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slip:
    """One run under a lease, or without events the announcement of the lease.

    ``promised_microcredits`` of the lease are for it; ``events`` have the amounts they should cost.
    """

    lease_id: str
    customer: str
    promised_microcredits: int = 0
    events: tuple[UsageEvent, ...] = ()

    def to_line(self, wires: Sequence[bytes] | None = None) -> bytes:
        """One line, a JSON object.

        Args:
            wires: The events as they are on the wire, if somebody has encoded them already.
        """
        if wires is None:
            wires = [event.to_wire() for event in self.events]
        wire = {
            "lease": self.lease_id,
            "customer": self.customer,
            "promised": self.promised_microcredits,
            "events": [orjson.Fragment(event) for event in wires],
        }
        return orjson.dumps(wire, option=orjson.OPT_APPEND_NEWLINE)

    @classmethod
    def from_line(cls, line: bytes) -> Slip:
        """The slip of a line.

        Raises:
            InvalidValue: It is none.
        """
        try:
            wire: dict[str, Any] = orjson.loads(line)
            events = tuple(from_wire(orjson.dumps(event)) for event in wire["events"])
            lease_id, customer = wire["lease"], wire["customer"]
            promised = check_microcredits(wire["promised"], field="promised")
            if not isinstance(lease_id, str) or not isinstance(customer, str):
                raise InvalidValue("lease", lease_id, "use text")
        except (orjson.JSONDecodeError, InvalidEvent, KeyError, TypeError) as error:
            raise InvalidValue("slip", line[:80], str(error)) from error
        return cls(
            lease_id=lease_id, customer=customer, promised_microcredits=promised, events=events
        )


@dataclass(slots=True, eq=False)
class Segment:
    """A file that a process appends to. ``waiting`` counts its slips that are not settled yet."""

    path: Path
    descriptor: int
    started_ms: int
    size: int = 0
    waiting: int = 0
    retired: bool = False


@dataclass(slots=True, eq=False)
class AbandonedSegment:
    """A segment of a dead process: its slips, and the leases it had."""

    path: Path
    slips: list[Slip]
    leases: set[tuple[str, str]]
    """Customer and lease id."""
    unreadable: int

    def finish(self) -> None:
        """Everything in it is settled: delete it, or put it aside if something is unreadable."""
        if not self.unreadable:
            self.path.unlink(missing_ok=True)
            return
        kept = self.path.with_suffix(UNREADABLE_SUFFIX)
        self.path.replace(kept)
        _log.error(
            "slips_unreadable",
            file=str(kept),
            lines=self.unreadable,
            meaning="these lines are no slips and are not billed; the others of the file are",
            remedy="read the file; bill what is missing in the log by hand, then delete it",
        )


class LeaseWal:
    """This process's slips, and those that dead ones left on this node.

    Args:
        directory: Where the segments are, on a local disk; made when first needed, readable by its
            owner only.
        clock: Names segments and tells their age.
        sync: Whether an ``append`` returns only when its slip is on the disk; else the system has
            it, which outlives every process but not the machine's power.
        max_segment_bytes: A segment grows no further than this, but for its last append.
        max_segment_seconds: So long a segment takes slips; settled ones are gone soon after.
    """

    def __init__(
        self,
        directory: Path,
        *,
        clock: Clock,
        sync: bool = True,
        max_segment_bytes: int = 2**20,
        max_segment_seconds: int = 60,
    ) -> None:
        self.directory = directory
        self._clock = clock
        self._sync = sync
        self._max_segment_bytes = max_segment_bytes
        self._max_segment_ms = max_segment_seconds * 1000
        self._pages = ProcessLocal(_Page, _Page.abandon)

    def announce(self, customer: str, lease_id: str) -> None:
        """Write down a lease before the store is asked for it.

        Not synced: a node that loses its power leaves its leases to expire.

        Raises:
            OSError: The disk refused.
        """
        page = self._pages.get()
        line = Slip(lease_id=lease_id, customer=customer).to_line()
        with page.disk:
            segment = self._current(page)
            with page.gate:
                page.announced[lease_id] = line
            _write(segment, line, sync=False)

    def forget(self, lease_id: str) -> None:
        """The lease was given back."""
        page = self._pages.get()
        with page.gate:
            page.announced.pop(lease_id, None)

    def append(self, line: bytes) -> Segment:
        """Return when the slip is safe. Threads that append at once share one sync.

        Returns:
            Where it is, for ``settled``.

        Raises:
            OSError: The disk refused (full, read-only). The slip counts as not written.
        """
        page = self._pages.get()
        with page.gate:
            group = page.group = page.group or _Group()
            group.lines.append(line)
        with page.disk:
            # Whoever comes here first writes for all that have come so far.
            if not group.ended:
                with page.gate:
                    page.group = None
                self._write_group(page, group)
        if group.segment is None:
            error = group.error or OSError(errno.EINTR, "the write was interrupted")
            raise OSError(error.errno, error.strerror, str(self.directory)) from error
        return group.segment

    def settled(self, segment: Segment, count: int = 1) -> None:
        """So many slips of the segment are settled and need not be found again."""
        page = self._pages.get()
        with page.gate:
            segment.waiting -= count
            is_over = segment.retired and segment.waiting == 0
        if is_over:
            _delete(segment)

    def tidy(self) -> None:
        """Begin a new segment where the present one is old, and end it where there is no lease.

        So settled slips do not stay: one that outlived its mark would be settled again.
        """
        page = self._pages.get()
        if not page.disk.acquire(blocking=False):
            return
        try:
            segment = page.segment
            if segment is None:
                return
            if self._is_old(segment):
                self._retire(page)
                if page.announced:
                    self._current(page)
            elif not page.announced and segment.waiting == 0:
                self._retire(page)
        finally:
            page.disk.release()

    def close(self) -> None:
        """Append no more. What is not settled is left to the node's relay."""
        page = self._pages.get()
        with page.disk:
            self._retire(page)
            for segment in list(page.retired):
                _close(segment)
            page.retired.clear()

    @contextmanager
    def left_behind(self) -> Iterator[list[AbandonedSegment]]:
        """The segments of dead processes, oldest first; nobody else takes them inside.

        Raises:
            OSError: The disk refused.
        """
        with ExitStack() as stack:
            found = [
                path
                for path in sorted(self.directory.glob(f"*{SUFFIX}"))
                if stack.enter_context(held(path))
            ]
            yield [_read(path) for path in found]

    def left(self, before: datetime) -> int:
        """How many segments of dead processes nobody has taken since ``before``; only looks.

        A living process's flock is never free, so holding one for a moment disturbs nobody but a
        relay, which comes again.
        """
        count = 0
        for path in self.directory.glob(f"*{SUFFIX}"):
            with held(path) as is_free, suppress(FileNotFoundError):
                count += is_free and path.stat().st_mtime < before.timestamp()
        return count

    def unreadable(self) -> int:
        """How many segments were put aside because something in them is no slip."""
        return sum(1 for _ in self.directory.glob(f"*{UNREADABLE_SUFFIX}"))

    def _write_group(self, page: _Page, group: _Group) -> None:
        try:
            segment = self._current(page)
            before = segment.size
            try:
                _write(segment, b"".join(group.lines), sync=self._sync)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(segment.descriptor, before)
                self._retire(page)
                raise
            with page.gate:
                segment.waiting += len(group.lines)
            group.segment = segment
        except OSError as error:
            group.error = error
        except BaseException:
            # Half a line may be there, and must stay the last one.
            self._retire(page)
            raise
        finally:
            group.ended = True

    def _current(self, page: _Page) -> Segment:
        segment = page.segment
        if segment is not None and (
            self._is_old(segment) or segment.size >= self._max_segment_bytes
        ):
            self._retire(page)
        if page.segment is None:
            page.segment = self._open(page)
        return page.segment

    def _is_old(self, segment: Segment) -> bool:
        return not 0 <= to_ms(self._clock.now()) - segment.started_ms < self._max_segment_ms

    def _retire(self, page: _Page) -> None:
        segment, page.segment = page.segment, None
        if segment is None:
            return
        with page.gate:
            segment.retired = True
            is_over = segment.waiting == 0
        if is_over:
            _delete(segment)
        else:
            page.retired = [each for each in page.retired if each.waiting] + [segment]

    def _open(self, page: _Page) -> Segment:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        for _ in range(_ATTEMPTS):
            started_ms = to_ms(self._clock.now())
            name = f"{started_ms:013d}-{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
            segment = Segment(
                self.directory / name, os.open(self.directory / name, flags, 0o600), started_ms
            )
            if _take(segment):
                self._make_room(segment)
                fsync_directory(self.directory)
                with page.gate:
                    announced = b"".join(page.announced.values())
                _write(segment, announced, sync=False)
                return segment
            _close(segment)
        raise OSError(
            errno.EAGAIN, f"{_ATTEMPTS} new segments were taken away", str(self.directory)
        )

    def _make_room(self, segment: Segment) -> None:
        """Have the disk give all of the room now: a sync need not write the file's length then.

        Measured: 0.5 to 0.7 of the time of a sync that does.
        """
        try:
            os.posix_fallocate(segment.descriptor, 0, self._max_segment_bytes)
        except OSError as error:
            if error.errno not in _NO_ROOM_IN_ADVANCE:
                _delete(segment)
                raise


@dataclass(slots=True, eq=False)
class _Group:
    """Slips that are written and synced together."""

    lines: list[bytes] = field(default_factory=list)
    segment: Segment | None = None
    error: OSError | None = None
    ended: bool = False


class _Page:
    """What one process has of the book. ``gate`` is held for moments, ``disk`` for a write."""

    def __init__(self) -> None:
        self.gate = threading.Lock()
        self.disk = threading.Lock()
        self.group: _Group | None = None
        self.segment: Segment | None = None
        self.retired: list[Segment] = []
        self.announced: dict[str, bytes] = {}

    def abandon(self) -> None:
        """In a forked child: close the copies. The flock is the parent's, and is not let go."""
        for segment in (*self.retired, *([self.segment] if self.segment else [])):
            _close(segment)


def _take(segment: Segment) -> bool:
    """Hold the flock for good; False if a relay was faster and took the file for a dead one's."""
    try:
        fcntl.flock(segment.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(segment.descriptor).st_nlink > 0


def _write(segment: Segment, data: bytes, *, sync: bool) -> None:
    left, at = memoryview(data), segment.size
    while left:
        written = os.pwrite(segment.descriptor, left, at)
        left, at = left[written:], at + written
    if sync:
        os.fdatasync(segment.descriptor)
    segment.size = at


def _delete(segment: Segment) -> None:
    segment.path.unlink(missing_ok=True)
    _close(segment)


def _close(segment: Segment) -> None:
    descriptor, segment.descriptor = segment.descriptor, -1
    if descriptor >= 0:
        os.close(descriptor)


def _read(path: Path) -> AbandonedSegment:
    # What follows the last newline was being written when the process died, and was never
    # acknowledged; or it is room that was not used.
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    left = AbandonedSegment(path, [], set(), 0)
    for line in filter(None, whole.split(b"\n")):
        try:
            slip = Slip.from_line(line)
        except InvalidValue:
            left.unreadable += 1
            continue
        if slip.lease_id:
            left.leases.add((slip.customer, slip.lease_id))
        if slip.events:
            left.slips.append(slip)
    return left
