"""What the server itself makes of the reserve script: ``redis-benchmark``'s EVALSHA.

It sends the same script with the same arguments, each with a task of its own, and looks at no
answer. It takes a password only where everybody on the machine can read it, so it gets a user of
its own who may touch the round's keys and is gone afterwards. Where there is no such program or no
such user, a driver in this process does the same over plain sockets; being Python, it may be slower
than the server.
"""

from __future__ import annotations

import csv
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Final
from urllib.parse import urlsplit

import redis

from billing.redis.scripts import packed, script_text
from lab.bench.errors import BenchError

_PROGRAMS: Final = ("valkey-benchmark", "redis-benchmark")
_RANDOM: Final = "__rand_int__"
"""What the programs put a number of twelve digits for."""
_RANGE: Final = 2_000_000_000
_DIGITS: Final = b"%012d"
_SECONDS: Final = 120.0


def program_for(client: redis.Redis, url: str) -> str | None:
    """The program to use for a server; None: the driver of this module."""
    found = next((path for name in _PROGRAMS if (path := shutil.which(name))), None)
    if found is None or urlsplit(url).scheme != "redis":
        return None
    try:
        with _guest(client, "wbbench"):
            return found
    except redis.ResponseError:
        return None


@contextmanager
def _guest(client: redis.Redis, prefix: str) -> Iterator[tuple[str, str]]:
    """Name and password of a user for keys of one prefix."""
    name, password = f"{prefix}.guest", secrets.token_urlsafe(16)
    client.acl_setuser(
        name, enabled=True, passwords=[f"+{password}"], keys=[f"{prefix}:*"], commands=["+@all"]
    )
    try:
        yield name, password
    finally:
        client.acl_deluser(name)


def reserve_command(
    client: redis.Redis, keys: Sequence[str], arguments: Sequence[object]
) -> list[str]:
    """EVALSHA of the reserve script, which is loaded first."""
    sha = str(client.script_load(script_text("reserve")))
    return ["EVALSHA", sha, str(len(keys)), *keys, *map(str, arguments)]


def rate(
    client: redis.Redis,
    url: str,
    prefix: str,
    command: list[str],
    *,
    clients: int,
    depth: int,
    calls: int,
) -> float:
    """Calls a second.

    Args:
        client: Of the server, to make a user.
        url: The server's.
        prefix: Of the keys.
        command: With ``__rand_int__`` where each call has a number of its own.
        clients: Connections.
        depth: Calls sent before the first answer is waited for.
        calls: How many, at least.

    Raises:
        BenchError: The program failed.
    """
    program = program_for(client, url)
    if program is None:
        return _driven(url, command, clients, depth, calls)
    parts = urlsplit(url)
    with _guest(client, prefix) as (name, password):
        arguments = [
            *(program, "-h", parts.hostname or "127.0.0.1", "-p", str(parts.port or 6379)),
            *("--dbnum", parts.path.strip("/") or "0", "--user", name, "-a", password),
            *("-c", str(clients), "-P", str(depth), "-n", str(calls), "-r", str(_RANGE), "--csv"),
            *command,
        ]
        done = subprocess.run(  # noqa: S603 - our own command line, no shell
            arguments, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    rows = list(csv.DictReader(done.stdout[done.stdout.find('"test"') :].splitlines()))
    if done.returncode != 0 or len(rows) != 1 or not rows[0].get("rps"):
        told = done.stdout + done.stderr
        raise BenchError(f"{program} ended with {done.returncode}: {told!r:.500}")
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
