"""Files that several processes share: who holds one, and what is really on the disk."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
        return
    try:
        yield os.fstat(descriptor).st_nlink > 0
    finally:
        # Said aloud: a child forked meanwhile has a copy of the descriptor, which would keep it.
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def fsync_directory(directory: Path) -> None:
    """Return when the names of the directory's files are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
