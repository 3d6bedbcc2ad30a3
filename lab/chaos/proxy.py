"""A TCP proxy on loopback whose network can be made bad: the way of every fault between processes.

It runs on an event loop in a thread of its own. ``target`` may change while it runs (a server that
was restarted on another port), so that clients keep one address for good.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

T = TypeVar("T")

_CHUNK: Final = 65_536
_WAIT_SECONDS: Final = 10.0
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of nothing: closing sends RST instead of FIN."""


class Mode(StrEnum):
    """What the network does."""

    PASS = "pass"  # noqa: S105 - no password
    LATENCY = "latency"
    """Every piece of data comes ``delay_seconds`` later, both ways."""
    CUT = "cut"
    """Connections are closed, new ones refused."""
    RESET = "reset"
    """Connections are reset (RST) at their next data, new ones at once."""
    HALF_OPEN = "half_open"
    """Connections stay, new ones are taken, and nothing comes through, as when a host vanishes."""
    DEAF = "deaf"
    """What clients say is lost, what the server says comes through."""


@dataclass(slots=True)
class Met:
    """What met a fault: shows that it hit."""

    connections: int = 0
    data_bytes: int = 0


class Proxy:
    """One listening port in front of one server; a context manager.

    Args:
        target: Port of 127.0.0.1 that connections are passed on to.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.mode = Mode.PASS
        self.delay_seconds = 0.0
        self.met = Met()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="chaos-proxy", daemon=True)
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._ask(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._ask(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_WAIT_SECONDS)

    def set(self, mode: Mode, *, delay_seconds: float = 0.0) -> None:
        """Change the network; returns when it is so. What met the fault is counted anew."""
        self._ask(self._set(mode, delay_seconds))

    def heal(self) -> Met:
        """Make it pass again; what the fault had met.

        A connection that lost data is reset: its ends could never agree again.
        """
        return self._ask(self._heal())

    def url(self, url: str) -> str:
        """``url`` with this proxy's address in place of the server's."""
        parts = urlsplit(url)
        login, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{login}{at}127.0.0.1:{self.port}"))

    def _ask(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_WAIT_SECONDS)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.abort(reset=False)
        mine = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not mine]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _set(self, mode: Mode, delay_seconds: float) -> None:
        self.mode, self.delay_seconds, self.met = mode, delay_seconds, Met()
        if mode is Mode.CUT:
            for connection in list(self._connections):
                self.met.connections += 1
                connection.abort(reset=False)

    async def _heal(self) -> Met:
        met, self.mode, self.delay_seconds, self.met = self.met, Mode.PASS, 0.0, Met()
        for connection in list(self._connections):
            if connection.lost_data:
                connection.abort(reset=True)
        return met

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode in (Mode.CUT, Mode.RESET):
            self.met.connections += 1
            _abort(writer, reset=self.mode is Mode.RESET)
            return
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            _abort(writer, reset=True)
            return
        connection = _Connection(self, writer, up_writer)
        self._connections.add(connection)
        try:
            await asyncio.gather(
                connection.pump(reader, up_writer, upwards=True),
                connection.pump(up_reader, writer, upwards=False),
            )
        except asyncio.CancelledError:
            # The proxy is being closed; asyncio would print a traceback for each connection.
            return
        finally:
            self._connections.discard(connection)
            connection.abort(reset=False)


class _Connection:
    """Both directions of one connection."""

    def __init__(self, proxy: Proxy, down: asyncio.StreamWriter, up: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._writers = (down, up)
        self._met_by: Met | None = None
        self.lost_data = False

    async def pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, upwards: bool
    ) -> None:
        """Pass on one direction until an end closes or the network takes it."""
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if await self._comes_through(len(data), upwards=upwards):
                    writer.write(data)
                    await writer.drain()
        # One end has gone: so does the other.
        self.abort(reset=False)

    async def _comes_through(self, size: int, *, upwards: bool) -> bool:
        proxy = self._proxy
        if proxy.mode is Mode.PASS:
            return True
        if proxy.mode is Mode.DEAF and not upwards:
            return True
        self._count(size)
        if proxy.mode is Mode.LATENCY:
            await asyncio.sleep(proxy.delay_seconds)
            return True
        if proxy.mode is Mode.RESET:
            self.abort(reset=True)
        self.lost_data = True
        return False

    def _count(self, size: int) -> None:
        met = self._proxy.met
        met.data_bytes += size
        if self._met_by is not met:
            self._met_by = met
            met.connections += 1

    def abort(self, *, reset: bool) -> None:
        """Close both ends at once."""
        for writer in self._writers:
            _abort(writer, reset=reset)


def _abort(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    found: socket.socket | None = writer.get_extra_info("socket")
    if reset and found is not None:
        with contextlib.suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
