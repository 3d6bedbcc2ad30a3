"""What the server itself makes of the reserve script: ``redis-benchmark``'s EVALSHA.

It sends the same script with the same arguments, each with a task of its own, and looks at no
answer. Where there is no such program, or it could not be told a password without showing it to
everybody, a driver in this process does the same over plain sockets; being Python, it may be
slower than the server.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from itertools import count
from typing import Final
from urllib.parse import urlsplit

import redis

from benchmarks.errors import BenchError
from billing.quota.redis_calls import packed, script_text

_PROGRAMS: Final = ("valkey-benchmark", "redis-benchmark")
_RANDOM: Final = "__rand_int__"
"""What the programs put a number of twelve digits for."""
_RANGE: Final = 2_000_000_000
_DIGITS: Final = b"%012d"
_SECONDS: Final = 120.0


def program_for(url: str) -> str | None:
    """The program to use for a server; None: the driver of this module."""
    parts = urlsplit(url)
    if parts.scheme != "redis" or parts.password or parts.username:
        return None
    return next((found for name in _PROGRAMS if (found := shutil.which(name))), None)


def reserve_command(
    client: redis.Redis, keys: Sequence[str], arguments: Sequence[object]
) -> list[str]:
    """EVALSHA of the reserve script, which is loaded first."""
    sha = str(client.script_load(script_text("reserve")))
    return ["EVALSHA", sha, str(len(keys)), *keys, *map(str, arguments)]


def rate(url: str, command: list[str], *, clients: int, depth: int, calls: int) -> float:
    """Calls a second.

    Args:
        url: The server's.
        command: With ``__rand_int__`` where each call has a number of its own.
        clients: Connections.
        depth: Calls sent before the first answer is waited for.
        calls: How many, at least.

    Raises:
        BenchError: The program failed.
    """
    program = program_for(url)
    if program is None:
        return _driven(url, command, clients, depth, calls)
    parts = urlsplit(url)
    arguments = [
        *(program, "-h", parts.hostname or "127.0.0.1", "-p", str(parts.port or 6379)),
        *("--dbnum", parts.path.strip("/") or "0", "--csv", "-r", str(_RANGE)),
        *("-c", str(clients), "-P", str(depth), "-n", str(calls), *command),
    ]
    done = subprocess.run(  # noqa: S603 - our own command line, no shell
        arguments, capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    rows = list(csv.DictReader(done.stdout.splitlines()))
    if done.returncode != 0 or len(rows) != 1 or not rows[0].get("rps"):
        raise BenchError(
            f"{program} ended with {done.returncode}: {done.stdout + done.stderr!r:.500}"
        )
    return float(rows[0]["rps"])


def _driven(url: str, command: list[str], clients: int, depth: int, calls: int) -> float:
    template = packed(command).replace(_RANDOM.encode(), _DIGITS)
    places = template.count(_DIGITS)
    numbers, failures = count(), list[BaseException]()
    rounds = max(1, calls // clients // depth)

    def some() -> None:
        try:
            with redis.Redis.from_url(url, socket_timeout=_SECONDS) as client:
                connection = client.connection_pool.get_connection()
                for _ in range(rounds):
                    sent = [template % ((next(numbers),) * places) for _ in range(depth)]
                    connection.send_packed_command(sent, check_health=False)
                    for _ in sent:
                        connection.read_response()
        except BaseException as error:  # noqa: BLE001 - told by the thread that waits
            failures.append(error)

    threads = [threading.Thread(target=some) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise BenchError(f"EVALSHA: {failures[0]!r}")
    return rounds * depth * clients / (time.perf_counter() - began)
