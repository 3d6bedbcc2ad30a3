"""The lease write-ahead log: runs under a lease, on this node's disk before they are acknowledged.

The store is told of such runs in batches, some moments later. What was not settled when its process
died is found here: every process appends to segments of its own and holds their flock for as long
as it lives, so **a segment whose flock is free is of a process that is dead**, and whoever takes it
settles what it says. An entry that was settled already does no harm then; it is known by its mark.

A segment begins with the leases that its process has, so that they can be given back for it.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog

from billing.core.clock import Clock
from billing.core.errors import InvalidValue
from billing.core.process_local import ProcessLocal
from billing.transport.lease_wal_entry import LeaseWalEntry
from billing.transport.segment_files import (
    ATTEMPTS,
    UNREADABLE_SUFFIX,
    SegmentFile,
    SegmentFolder,
    fsync_directory,
    held,
    read_lines,
    take_flock,
)

_log = structlog.get_logger(__name__)

SUFFIX: Final = ".slips"
_NO_ROOM_IN_ADVANCE: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
"""What a file system says that cannot; its syncs take longer, and are as good."""


@dataclass(slots=True, eq=False)
class LeaseSegment:
    """A file that a process appends to. ``waiting`` counts its entries that are not settled yet."""

    file: SegmentFile
    waiting: int = 0
    retired: bool = False


@dataclass(slots=True, eq=False)
class AbandonedSegment:
    """A segment of a dead process: its entries, and the leases it had."""

    path: Path
    entries: list[LeaseWalEntry]
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
            "lease_entries_unreadable",
            file=str(kept),
            lines=self.unreadable,
            money="these lines are no entries and are not billed; the others of the file are",
            remedy="read the file; bill what is missing in the log by hand, then delete it",
        )


class LeaseWal:
    """This process's runs under leases, and those of dead processes of this node.

    Args:
        directory: Where the segments are, on a local disk; made when first needed, readable by its
            owner only.
        clock: Names segments and tells their age.
        sync: Whether an ``append`` returns only when its entry is on the disk; else the system has
            it, which outlives every process but not the machine's power.
        max_segment_bytes: A segment grows no further than this, but for its last append.
        max_segment_seconds: A segment takes entries for this long; settled ones go soon after.
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
        self._folder = SegmentFolder(
            directory,
            SUFFIX,
            clock=clock,
            max_bytes=max_segment_bytes,
            max_seconds=max_segment_seconds,
        )
        self._sync = sync
        self._processes = ProcessLocal(_ProcessState, _ProcessState.abandon)

    def announce(self, customer: str, lease_id: str) -> None:
        """Write down a lease before the store is asked for it.

        Not synced: a node that loses its power leaves its leases to expire.

        Raises:
            OSError: The disk refused.
        """
        state = self._processes.get()
        line = LeaseWalEntry(lease_id=lease_id, customer=customer).to_line()
        with state.disk:
            segment = self._current(state)
            with state.gate:
                state.announced[lease_id] = line
            segment.file.write(line, None)

    def forget(self, lease_id: str) -> None:
        """The lease was given back."""
        state = self._processes.get()
        with state.gate:
            state.announced.pop(lease_id, None)

    def append(self, line: bytes) -> LeaseSegment:
        """Return when the entry is safe. Threads that append at once share one sync.

        Returns:
            Where it is, for ``settled``.

        Raises:
            OSError: The disk refused (full, read-only). The entry counts as not written.
        """
        state = self._processes.get()
        with state.gate:
            group = state.group = state.group or _Group()
            group.lines.append(line)
        with state.disk:
            # Whoever comes here first writes for all that have come so far.
            if not group.ended:
                with state.gate:
                    state.group = None
                self._write_group(state, group)
        if group.segment is None:
            error = group.error or OSError(errno.EINTR, "the write was interrupted")
            raise OSError(error.errno, error.strerror, str(self.directory)) from error
        return group.segment

    def settled(self, segment: LeaseSegment, count: int = 1) -> None:
        """Note that entries of the segment are settled and need not be found again."""
        state = self._processes.get()
        with state.gate:
            segment.waiting -= count
            is_over = segment.retired and segment.waiting == 0
        if is_over:
            segment.file.delete()

    def tidy(self) -> None:
        """Begin a new segment where the present one is old, and end it where there is no lease.

        So settled entries do not stay: one that outlived its mark would be settled again.
        """
        state = self._processes.get()
        if not state.disk.acquire(blocking=False):
            return
        try:
            segment = state.segment
            if segment is None:
                return
            if self._folder.is_old(segment.file):
                self._retire(state)
                if state.announced:
                    self._current(state)
            elif not state.announced and segment.waiting == 0:
                self._retire(state)
        finally:
            state.disk.release()

    def close(self) -> None:
        """Append no more. What is not settled waits for the node's relay."""
        state = self._processes.get()
        with state.disk:
            self._retire(state)
            for segment in list(state.retired):
                segment.file.close()
            state.retired.clear()

    @contextmanager
    def abandoned(self) -> Iterator[list[AbandonedSegment]]:
        """The segments of dead processes, oldest first; nobody else takes them inside.

        Raises:
            OSError: The disk refused.
        """
        with ExitStack() as stack:
            found = [path for path in self._folder.paths() if stack.enter_context(held(path))]
            yield [_read(path) for path in found]

    def abandoned_since(self, before: datetime) -> int:
        """How many segments of dead processes nobody has taken since ``before``; only looks.

        A living process's flock is never free, so holding one for a moment disturbs nobody but a
        relay, which comes again.
        """
        count = 0
        for path in self._folder.paths():
            with held(path) as is_free, suppress(FileNotFoundError):
                count += is_free and path.stat().st_mtime < before.timestamp()
        return count

    def unreadable(self) -> int:
        """How many segments were put aside because something in them is no entry."""
        return self._folder.unreadable()

    def _write_group(self, state: _ProcessState, group: _Group) -> None:
        try:
            segment = self._current(state)
            try:
                segment.file.write(b"".join(group.lines), os.fdatasync if self._sync else None)
            except OSError:
                self._retire(state)
                raise
            with state.gate:
                segment.waiting += len(group.lines)
            group.segment = segment
        except OSError as error:
            group.error = error
        except BaseException:
            # Half a line may be there, and must stay the last one.
            self._retire(state)
            raise
        finally:
            group.ended = True

    def _current(self, state: _ProcessState) -> LeaseSegment:
        if state.segment is not None and self._folder.is_over(state.segment.file):
            self._retire(state)
        if state.segment is None:
            state.segment = self._open(state)
        return state.segment

    def _retire(self, state: _ProcessState) -> None:
        segment, state.segment = state.segment, None
        if segment is None:
            return
        with state.gate:
            segment.retired = True
            is_over = segment.waiting == 0
        if is_over:
            segment.file.delete()
        else:
            state.retired = [each for each in state.retired if each.waiting] + [segment]

    def _open(self, state: _ProcessState) -> LeaseSegment:
        for _ in range(ATTEMPTS):
            file = self._folder.create()
            # False if a relay was faster and took the file for a dead process's.
            if take_flock(file.descriptor):
                self._reserve_room(file)
                fsync_directory(self.directory)
                with state.gate:
                    announced = b"".join(state.announced.values())
                file.write(announced, None)
                return LeaseSegment(file)
            file.close()
        raise OSError(errno.EAGAIN, f"{ATTEMPTS} new segments were taken away", str(self.directory))

    def _reserve_room(self, file: SegmentFile) -> None:
        """Have the disk give all of the room now: a sync need not write the file's length then.

        Measured: 0.5 to 0.7 of the time of a sync that does.
        """
        try:
            os.posix_fallocate(file.descriptor, 0, self._folder.max_bytes)
        except OSError as error:
            if error.errno not in _NO_ROOM_IN_ADVANCE:
                file.delete()
                raise


@dataclass(slots=True, eq=False)
class _Group:
    """Entries that are written and synced together."""

    lines: list[bytes] = field(default_factory=list)
    segment: LeaseSegment | None = None
    error: OSError | None = None
    ended: bool = False


class _ProcessState:
    """One process's segments. ``gate`` is held for moments, ``disk`` for a write."""

    def __init__(self) -> None:
        self.gate = threading.Lock()
        self.disk = threading.Lock()
        self.group: _Group | None = None
        self.segment: LeaseSegment | None = None
        self.retired: list[LeaseSegment] = []
        self.announced: dict[str, bytes] = {}

    def abandon(self) -> None:
        """In a forked child: close the copies. The flock is the parent's, and is not let go."""
        for segment in (*self.retired, *([self.segment] if self.segment else [])):
            segment.file.close()


def _read(path: Path) -> AbandonedSegment:
    # A torn line was never acknowledged; or it is room that was not used.
    lines, _ = read_lines(path)
    found = AbandonedSegment(path, [], set(), 0)
    for line in lines:
        try:
            entry = LeaseWalEntry.from_line(line)
        except InvalidValue:
            found.unreadable += 1
            continue
        if entry.lease_id:
            found.leases.add((entry.customer, entry.lease_id))
        if entry.events:
            found.entries.append(entry)
    return found
