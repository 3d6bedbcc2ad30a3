"""Running the local Stripe: in a thread for tests and the demo, or on its own."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final, Self

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from billing.core.clock import Clock
from billing.devtools.stripe_sandbox.app import DROP, Prepare, create_app, nothing
from billing.devtools.stripe_sandbox.control import Control
from billing.devtools.stripe_sandbox.sandbox import Sandbox

LOOPBACK: Final = "127.0.0.1"
START_SECONDS: Final = 15.0
KEEP_ALIVE_SECONDS: Final = 600
"""Longer than a client is idle: a request that meets a closing connection is lost."""
DEFAULT_PORT: Final = 12_111


class DroppingProtocol(H11Protocol):
    """HTTP whose connection the request it is serving can drop, as a dying network does."""

    def data_received(self, data: bytes) -> None:
        """Serve what has come, with the means to drop this connection at hand."""
        token = DROP.set(self._drop)
        try:
            super().data_received(data)
        finally:
            DROP.reset(token)

    def _drop(self) -> None:
        if self.transport is not None:
            self.transport.abort()


def _server(app: FastAPI, host: str, port: int, log_level: str = "warning") -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=DroppingProtocol,
        ws="none",
        access_log=False,
        log_level=log_level,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


def bind(host: str, port: int) -> socket.socket:
    """A socket that has the address; nothing listens on it yet. ``port`` 0 is a free one.

    Raises:
        OSError: There is no such address here, or the port is in use.
    """
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    # Named as TCP: asyncio sets TCP_NODELAY only then, and each answer is two writes.
    bound = socket.socket(family, kind, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound


def is_loopback(host: str) -> bool:
    """Whether every address of ``host`` is reachable from this machine alone.

    Raises:
        OSError: There is no such host.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return all(ipaddress.ip_address(address[0]).is_loopback for *_, address in found)


def url_of(bound: socket.socket) -> str:
    """The URL under which this machine reaches a socket that has an address."""
    host, port = bound.getsockname()[:2]
    # One that listens on every address is reached on loopback, too.
    host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)  # noqa: S104 - nothing binds here
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class SandboxServer:
    """A local Stripe on a free loopback port, in a thread of its own; a context manager.

    Args:
        clock: The time its objects live in; the machine's if not given.
        port: The port; a free one if 0.
        prepare: What an empty sandbox gets, also after a reset, such as webhooks.
    """

    def __init__(
        self, clock: Clock | None = None, *, port: int = 0, prepare: Prepare = nothing
    ) -> None:
        self.app = create_app(clock, prepare=prepare)
        self._socket = bind(LOOPBACK, port)
        self.url = url_of(self._socket)
        self._uvicorn = _server(self.app, LOOPBACK, port)
        self._thread = threading.Thread(target=self._run, name="stripe-sandbox", daemon=True)

    @property
    def sandbox(self) -> Sandbox:
        """The state behind it, to look at; the server's thread is the one that changes it."""
        control: Control = self.app.state.control
        return control.sandbox

    def start(self) -> Self:
        """Start, and wait until it answers.

        Raises:
            RuntimeError: It does not come up.
        """
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._uvicorn.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError(f"the local Stripe did not start on {self.url}")
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        """Stop, and wait until it has."""
        self._uvicorn.should_exit = True
        self._thread.join(timeout=START_SECONDS)
        self._socket.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _run(self) -> None:
        asyncio.run(self._uvicorn.serve(sockets=[self._socket]))


def main(
    host: str = LOOPBACK,
    port: int = DEFAULT_PORT,
    *,
    prepare: Prepare = nothing,
    announce: Callable[[str], object] | None = None,
) -> None:
    """Run a local Stripe in the foreground until SIGINT or SIGTERM.

    Args:
        host: The address to listen on. The control API asks for no key: leave it on loopback.
        port: The port to listen on; a free one if 0.
        prepare: What an empty sandbox gets, also after a reset, such as webhooks.
        announce: Called with the URL once the port is ours; by default it is logged.

    Raises:
        OSError: The address cannot be had; nothing was announced.
    """
    with bind(host, port) as bound, _signals_end_quietly():
        # Of two that are started at once, only this tells the second.
        bound.listen()
        url = url_of(bound)
        if announce is None:
            logging.getLogger(__name__).warning("a local Stripe on %s", url)
        else:
            announce(url)
        _server(create_app(prepare=prepare), host, port).run(sockets=[bound])


@contextlib.contextmanager
def _signals_end_quietly() -> Iterator[None]:
    # uvicorn ends in order on a signal and then raises it once more, for whoever had it before.
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        for number, handler in before.items():
            # None: set by other than Python code, which cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
