"""The network as a fetch may use it: checked addresses, one deadline, bounded bytes."""

from __future__ import annotations

import socket
import ssl
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import httpcore

from workers.tasks.errors import NotHtmlError, TooLargeError

Resolver = Callable[[str, int], Sequence[str]]
"""From a name and a port to every address of it, as text. Raises OSError where there is none."""

SocketOptions = Iterable[httpcore.SOCKET_OPTION] | None
_GZIP: Final = 16 + zlib.MAX_WBITS


class Deadline:
    """One instant by which everything must be done.

    A time-out per read is not enough: a server that sends a byte a second never runs into one.
    """

    def __init__(self, seconds: float, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._end = monotonic() + seconds

    def left(self) -> float:
        """Seconds left, more than zero.

        Raises:
            httpcore.TimeoutException: None are left.
        """
        left = self._end - self._monotonic()
        if left <= 0:
            raise httpcore.TimeoutException
        return left


class PinnedBackend(httpcore.NetworkBackend):
    """Connects to the given addresses, whatever host it is asked for, and within the deadline.

    Everything above it (the Host header, the TLS server name, the certificate's check) still goes
    by the host in the URL. With ``addresses`` None, the host asked for is connected to: a proxy's.
    """

    def __init__(
        self,
        inner: httpcore.NetworkBackend,
        addresses: tuple[str, ...] | None,
        deadline: Deadline,
        on_connect: Callable[[], None],
    ) -> None:
        self._inner = inner
        self._addresses = addresses
        self._deadline = deadline
        self._on_connect = on_connect

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the deadline rules
        local_address: str | None = None,
        socket_options: SocketOptions = None,
    ) -> httpcore.NetworkStream:
        """A connection to the first address that answers; each gets its share of the time left.

        Raises:
            httpcore.ConnectError: None of them answers.
            httpcore.ConnectTimeout: The last of them did not answer in time.
        """
        addresses = self._addresses or (host,)
        for untried in range(len(addresses), 0, -1):
            try:
                stream = self._inner.connect_tcp(
                    addresses[-untried],
                    port,
                    timeout=self._deadline.left() / untried,
                    local_address=local_address,
                    socket_options=socket_options,
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if untried == 1:
                    raise
            else:
                self._on_connect()
                return _DeadlineStream(stream, self._deadline)
        raise httpcore.ConnectError  # pragma: no cover - there is at least one address


class _DeadlineStream(httpcore.NetworkStream):
    """A connection whose every wait ends with the deadline: handshake, headers and body alike."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._inner = inner
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - as above
        return self._inner.read(max_bytes, self._deadline.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - as above
        self._inner.write(buffer, self._deadline.left())

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - as above
    ) -> httpcore.NetworkStream:
        secured = self._inner.start_tls(ssl_context, server_hostname, self._deadline.left())
        return _DeadlineStream(secured, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class BoundedBody:
    """A body as it arrives: counted as sent and as decompressed, and refused once past the bound.

    Never more than one byte past the bound is decompressed, however well the bytes were packed.
    """

    def __init__(self, url: str, encoding: str, max_bytes: int) -> None:
        self._url = url
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []
        self._received = 0
        self._kept = 0
        self._gzip = zlib.decompressobj(_GZIP) if encoding in {"gzip", "x-gzip"} else None
        if self._gzip is None and encoding not in {"", "identity"}:
            raise NotHtmlError(url, f"it is encoded as {encoding!r:.40}, which was not asked for")

    def feed(self, data: bytes) -> None:
        """Take the next bytes as sent.

        Raises:
            TooLargeError: They pass the bound, as sent or decompressed.
            NotHtmlError: They are not the gzip data they claim to be.
        """
        self._received += len(data)
        self._check(self._received)
        if self._gzip is not None:
            data = self._decompressed(self._gzip, data)
        self._kept += len(data)
        self._check(self._kept)
        self._parts.append(data)

    def whole(self) -> bytes:
        """The body, decompressed.

        Raises:
            NotHtmlError: The gzip data ends too early.
        """
        if self._gzip is not None and self._received and not self._gzip.eof:
            raise NotHtmlError(self._url, "its gzip data ends too early")
        return b"".join(self._parts)

    def _decompressed(self, decompressor: zlib._Decompress, data: bytes) -> bytes:
        try:
            plain = decompressor.decompress(data, self._max_bytes - self._kept + 1)
        except zlib.error:
            raise NotHtmlError(self._url, "its gzip data is broken") from None
        if decompressor.unused_data:
            raise NotHtmlError(self._url, "bytes follow its gzip data")
        return plain

    def _check(self, count: int) -> None:
        if count > self._max_bytes:
            raise TooLargeError(self._url, f"it has more than {self._max_bytes} bytes")


def system_resolver(host: str, port: int) -> list[str]:
    """Every address the system's resolver knows for ``host``, IPv4 and IPv6."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def resolve_within(deadline: Deadline, resolve: Resolver, host: str, port: int) -> Sequence[str]:
    """``resolve(host, port)``, waited for until the deadline.

    The system's resolver takes no time-out, so it runs in a thread of its own, which is left behind
    when time is up and ends by itself with the resolver's last attempt.

    Raises:
        httpcore.TimeoutException: It took too long.
        OSError: The name does not resolve.
    """
    answers: list[Sequence[str]] = []
    failures: list[Exception] = []

    def look_up() -> None:
        try:
            answers.append(resolve(host, port))
        except Exception as error:  # noqa: BLE001 - carried over to the waiting thread, not dropped
            failures.append(error)

    thread = threading.Thread(target=look_up, name="resolve", daemon=True)
    thread.start()
    thread.join(deadline.left())
    if failures:
        raise failures[0]
    if not answers:
        raise httpcore.TimeoutException
    return answers[0]
