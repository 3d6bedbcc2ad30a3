"""Running the local Stripe: in a thread for tests and the demo, or on its own."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from types import TracebackType
from typing import Final, Self

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from billing.core.clock import Clock
from billing.stripe_sandbox.app import DROP, create_app
from billing.stripe_sandbox.control import Control
from billing.stripe_sandbox.sandbox import Sandbox

LOOPBACK: Final = "127.0.0.1"
START_SECONDS: Final = 15.0
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
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


class SandboxServer:
    """A local Stripe on a free loopback port, in a thread of its own; a context manager.

    Args:
        clock: The time its objects live in; the machine's if not given.
        port: The port; a free one if 0.
    """

    def __init__(self, clock: Clock | None = None, *, port: int = 0) -> None:
        self.app = create_app(clock)
        # Named as TCP: asyncio sets TCP_NODELAY only then, and each answer is two writes.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((LOOPBACK, port))
        self.url = f"http://{LOOPBACK}:{self._socket.getsockname()[1]}"
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


def main(host: str = LOOPBACK, port: int = DEFAULT_PORT) -> None:
    """Run a local Stripe in the foreground until interrupted; it logs its address.

    Args:
        host: The address to listen on. The control API asks for no key: leave it on loopback.
        port: The port to listen on.
    """
    _server(create_app(), host, port, "info").run()
