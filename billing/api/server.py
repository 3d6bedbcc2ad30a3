"""The server of the application, in a thread of its own, so that its starter can end it."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from types import TracebackType
from typing import Final, Self

import uvicorn
from fastapi import FastAPI

from billing.core.errors import ConfigurationError

START_SECONDS: Final = 15.0
GRACE_SECONDS: Final = 25
"""Time for requests under way to end: longer than Stripe is waited for."""
MOST_CONNECTIONS: Final = 200
_LOOK_SECONDS: Final = 0.2


class ApiServer:
    """An application on an address, in a thread; a context manager.

    Args:
        app: The application.
        address: The address to listen on.
        port: The port; a free one if 0.

    Raises:
        ConfigurationError: Nothing can listen there.
    """

    def __init__(self, app: FastAPI, address: str, port: int) -> None:
        self._socket = _listen(address, port)
        port = self._socket.getsockname()[1]
        host = f"[{address}]" if ":" in address else address
        self.url = f"http://{host}:{port}"
        config = uvicorn.Config(
            app,
            # Our own middleware logs requests, and ``ToStructlog`` what uvicorn says.
            access_log=False,
            log_config=None,
            ws="none",
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, name="api", daemon=True)

    def start(self) -> Self:
        """Start, and wait until it answers.

        Raises:
            RuntimeError: It does not come up.
        """
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._uvicorn.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"the API did not start on {self.url}")
            time.sleep(0.01)
        return self

    def wait(self, stop: threading.Event) -> None:
        """Wait until ``stop`` is set.

        Raises:
            RuntimeError: The server ended by itself.
        """
        while not stop.wait(_LOOK_SECONDS):
            if not self._thread.is_alive():
                raise RuntimeError("the API's server ended by itself; its log says why")

    def stop(self) -> None:
        """Take no more requests, and wait until those under way have ended."""
        self._uvicorn.should_exit = True
        self._thread.join(timeout=GRACE_SECONDS + START_SECONDS)
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

    def _serve(self) -> None:
        asyncio.run(self._uvicorn.serve(sockets=[self._socket]))


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # Named as TCP: asyncio sets TCP_NODELAY only then, and each answer is two writes.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((address, port))
    except OSError as error:
        listening.close()
        raise ConfigurationError(
            "WEIGHBRIDGE_API_ADDRESS, WEIGHBRIDGE_API_PORT",
            f"nothing can listen on {address}:{port} ({error.strerror or error})",
            "stop what is listening there, or choose another port",
        ) from error
    return listening
