"""Segment files: lines that one process appends and another may take over when it is dead.

Journal, spool and the log of leases are folders of such files. A segment is named by the
millisecond it was begun in, takes appends for a bounded time and size, and belongs to whoever holds
its flock.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

from billing.core.clock import Clock, to_ms

UNREADABLE_SUFFIX: Final = ".unreadable"
ATTEMPTS: Final = 20
"""New segments tried by one append. Each failure is another process that was faster to take it; two
are unheard of."""
_opened: Final = count(1)


@dataclass(slots=True, eq=False)
class SegmentFile:
    """A segment that this process appends to; ``descriptor`` is -1 once it is closed."""

    path: Path
    descriptor: int
    started_ms: int
    size: int = 0

    def write(self, data: bytes, sync: Callable[[int], None] | None) -> None:
        """Append the data, or nothing.

        Args:
            data: Whole lines.
            sync: Makes the disk have them, where that is to be waited for.

        Raises:
            OSError: The disk refused.
        """
        rest, at = memoryview(data), self.size
        try:
            while rest:
                written = os.pwrite(self.descriptor, rest, at)
                rest, at = rest[written:], at + written
            if sync is not None:
                sync(self.descriptor)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self.descriptor, self.size)
            raise
        self.size = at

    def close(self) -> None:
        """Append no more. In a forked child: close the inherited descriptor."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def delete(self) -> None:
        """Delete the file while its flock is still held, then close it."""
        self.path.unlink(missing_ok=True)
        self.close()


class SegmentFolder:
    """The segments of one kind on this node.

    Args:
        directory: On a local disk; made when first needed, readable by its owner only.
        suffix: Ends the names of the segments.
        clock: Names segments and tells their age.
        max_bytes: A segment grows no further than this, but for its last append.
        max_seconds: A segment takes appends for no longer than this.
    """

    def __init__(
        self, directory: Path, suffix: str, *, clock: Clock, max_bytes: int, max_seconds: int
    ) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self._suffix = suffix
        self._clock = clock
        self._max_ms = max_seconds * 1000

    def paths(self) -> list[Path]:
        """All segments, oldest first, those still being written included."""
        return sorted(self.directory.glob(f"*{self._suffix}"))

    def unreadable(self) -> int:
        """How many segments were put aside, wholly or in part, because of lines nobody can read."""
        return sum(1 for _ in self.directory.glob(f"*{UNREADABLE_SUFFIX}"))

    def create(self) -> SegmentFile:
        """Begin a segment.

        Raises:
            OSError: The disk refused.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        started_ms = to_ms(self._clock.now())
        # The random part keeps apart what a process id used again would not.
        own = f"{os.getpid()}-{next(_opened):06d}-{secrets.token_hex(4)}"
        path = self.directory / f"{started_ms:013d}-{own}{self._suffix}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        return SegmentFile(path, descriptor, started_ms)

    def is_old(self, segment: SegmentFile) -> bool:
        """Whether a segment takes no more appends for its age."""
        return not 0 <= to_ms(self._clock.now()) - segment.started_ms < self._max_ms

    def is_over(self, segment: SegmentFile) -> bool:
        """Whether a segment takes no more appends, for its age or its size."""
        return self.is_old(segment) or segment.size >= self.max_bytes

    def ended_ms(self, path: Path) -> int:
        """The latest millisecond at which a segment took an append."""
        started, _, _ = path.name.partition("-")
        # A file of another name is nobody's to delete: as new as can be.
        started_ms = int(started) if started.isdecimal() else to_ms(self._clock.now())
        return started_ms + self._max_ms


def read_lines(path: Path) -> tuple[list[bytes], bytes]:
    """The whole lines of a segment, and what follows the last: torn when its process died.

    Raises:
        OSError: It is gone or cannot be read.
    """
    whole, _, torn = path.read_bytes().rpartition(b"\n")
    return [line for line in whole.split(b"\n") if line], torn


@contextmanager
def held(file: Path) -> Iterator[bool]:
    """Hold a file's flock, if it is free and the file still exists."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        with flocked(descriptor) as is_held:
            yield is_held
    finally:
        os.close(descriptor)


@contextmanager
def flocked(descriptor: int) -> Iterator[bool]:
    """Hold the flock of an open file, if it is free and the file was not deleted."""
    is_held = take_flock(descriptor)
    try:
        yield is_held
    finally:
        # Said aloud: a child forked meanwhile has a copy of the descriptor, which would keep it.
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def take_flock(descriptor: int) -> bool:
    """Take the flock of an open file for good; False if it is taken or the file was deleted."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(descriptor).st_nlink > 0


def fsync_directory(directory: Path) -> None:
    """Return when the names of the directory's files are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
