"""The node's journal and spool: usage events as JSON lines in segment files on a local disk.

The *journal* remembers what was put into the outbox during the last minutes, in case Redis loses
it. The *spool* (``fsync=True``) takes events that could be neither put into the outbox nor
published.

Every process appends to segments of its own, so lines never mix. One rule makes taking a segment
over safe, also from a living writer: **whoever appends to, drains or deletes a segment holds its
flock**. A writer never waits for it: if its segment is held by somebody else, or was deleted, it
opens a new one. A drainer deletes a segment only when all its events are confirmed, and before it
lets go of the lock; so a line that was appended is in a file that somebody still has to read.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

import structlog

from billing.core.clock import Clock, to_ms
from billing.core.process_local import ProcessLocal
from billing.core.usage_event import InvalidEvent, UsageEvent
from billing.core.usage_event_json import from_wire
from billing.transport.segment_files import (
    ATTEMPTS,
    UNREADABLE_SUFFIX,
    SegmentFile,
    SegmentFolder,
    flocked,
    fsync_directory,
    held,
    read_lines,
)
from billing.transport.settled_figures import Encodable

_log = structlog.get_logger(__name__)

SUFFIX: Final = ".jsonl"


class EventKeeper(Protocol):
    """A place for events on the node's disk."""

    def append(self, events: Sequence[Encodable]) -> None:
        """Append, and return when they are kept."""
        ...


@dataclass(frozen=True, slots=True)
class SegmentContents:
    """What a segment holds.

    ``unreadable`` are whole lines that are no event; ``torn`` is what was being written when the
    process died: its ``append`` never returned.
    """

    events: list[UsageEvent]
    unreadable: list[bytes]
    torn: bytes


class Journal:
    """Usage events in segment files, appended by many processes and threads.

    Args:
        directory: Where the segments are; made when first needed, readable by its owner only.
        fsync: Whether an ``append`` returns only when its lines are on the disk.
        max_segment_bytes: A segment grows no further than this, but for its last append.
        max_segment_seconds: A segment takes appends for no longer than this.
        clock: Names segments and tells their age.
    """

    def __init__(
        self,
        directory: Path,
        *,
        fsync: bool = False,
        max_segment_bytes: int = 8 * 2**20,
        max_segment_seconds: int = 60,
        clock: Clock,
    ) -> None:
        self.directory = directory
        self._folder = SegmentFolder(
            directory,
            SUFFIX,
            clock=clock,
            max_bytes=max_segment_bytes,
            max_seconds=max_segment_seconds,
        )
        self._fsync = fsync
        self._writers = ProcessLocal(_Writer, _Writer.close)

    def append(self, events: Sequence[Encodable]) -> None:
        """Write the events, one line each.

        Raises:
            OSError: The disk refused (full, read-only). Nothing of this call is in the journal.
        """
        if not events:
            return
        lines = b"".join(event.to_wire() + b"\n" for event in events)
        writer = self._writers.get()
        with writer.lock:
            try:
                self._append(writer, lines)
            except BaseException:
                # Whatever is half written must stay the last line of its segment.
                writer.close()
                raise

    def segments(self) -> list[Path]:
        """All segments, oldest first, those still being written included."""
        return self._folder.paths()

    def read(self, segment: Path) -> SegmentContents:
        """What is in a segment.

        Raises:
            OSError: It is gone or cannot be read.
        """
        lines, torn = read_lines(segment)
        events: list[UsageEvent] = []
        unreadable: list[bytes] = []
        for line in lines:
            try:
                events.append(from_wire(line))
            except InvalidEvent:
                unreadable.append(line)
        return SegmentContents(events, unreadable, torn)

    def drain(self, publish: Callable[[Sequence[UsageEvent]], None], *, batch: int = 500) -> int:
        """Publish every segment, of living and dead processes, and delete what was confirmed.

        Lines that are no event are kept in a file beside, and logged. A crash at any point repeats
        events and loses none.

        Args:
            publish: Returns when all are confirmed; raises otherwise, which ends the drain.
            batch: The most events given to one ``publish``.

        Returns:
            How many events were confirmed.
        """
        drained = 0
        for segment in self.segments():
            with held(segment) as is_held:
                if is_held:
                    drained += self._drain_segment(segment, publish, batch)
        return drained

    def prune(self, older_than: datetime) -> int:
        """Delete segments all of whose events were appended before ``older_than``.

        Returns:
            How many were deleted.
        """
        oldest_kept_ms = to_ms(older_than)
        pruned = 0
        for segment in self.segments():
            if self._folder.ended_ms(segment) >= oldest_kept_ms:
                continue
            with held(segment) as is_held:
                if is_held:
                    segment.unlink(missing_ok=True)
                    pruned += 1
        return pruned

    def _append(self, writer: _Writer, lines: bytes) -> None:
        for _ in range(ATTEMPTS):
            segment = writer.segment
            if segment is None or self._folder.is_over(segment):
                writer.close()
                segment = writer.segment = self._folder.create()
                if self._fsync:
                    fsync_directory(self.directory)
            with flocked(segment.descriptor) as is_held:
                if is_held:
                    segment.size = os.fstat(segment.descriptor).st_size
                    segment.write(lines, os.fsync if self._fsync else None)
                    return
            writer.close()
        raise OSError(errno.EAGAIN, f"{ATTEMPTS} new segments were taken away", str(self.directory))

    def _drain_segment(
        self, segment: Path, publish: Callable[[Sequence[UsageEvent]], None], batch: int
    ) -> int:
        contents = self.read(segment)
        for start in range(0, len(contents.events), batch):
            publish(contents.events[start : start + batch])
        if contents.unreadable or contents.torn:
            self._keep_unreadable(segment, contents)
        segment.unlink(missing_ok=True)
        return len(contents.events)

    def _keep_unreadable(self, segment: Path, contents: SegmentContents) -> None:
        kept = segment.with_suffix(UNREADABLE_SUFFIX)
        with kept.open("wb") as file:
            file.write(b"\n".join([*contents.unreadable, contents.torn]))
            file.flush()
            os.fsync(file.fileno())
        _log.error(
            "journal_lines_unreadable",
            file=str(kept),
            lines=len(contents.unreadable),
            torn_bytes=len(contents.torn),
            money="these lines are not billed by themselves; a torn line is of a process that "
            "died while it wrote, and its task runs again where it is acknowledged late",
            remedy="read the file; bill what is missing in the log by hand, then delete it",
        )


class _Writer:
    """The segment that a process appends to, and the lock that its threads take turns under."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.segment: SegmentFile | None = None

    def close(self) -> None:
        """Append no more to this segment. In a forked child: close the inherited descriptor."""
        segment, self.segment = self.segment, None
        if segment is not None:
            segment.close()
