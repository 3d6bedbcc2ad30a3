"""Web servers on loopback, one for each test: what they answer is said by the test."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from billing.core.url_guard import FetchPolicy

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)


@dataclass(frozen=True)
class Reply:
    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str | None = "text/html; charset=utf-8"


Route = Reply | Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Site:
    """A running server: what it was asked, with which headers, in order."""

    port: int
    routes: dict[str, Route]
    scheme: str = "http"
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"


def page(title: str, *links: str, text: str = "") -> Reply:
    anchors = "".join(f'<a href="{link}">to {link}</a>' for link in links)
    return Reply(f"<title>{title}</title><body><p>{text}</p>{anchors}".encode())


@contextmanager
def serve(
    routes: Mapping[str, Route], tls: ssl.SSLContext | None = None, port: int = 0
) -> Iterator[Site]:
    """A server answering ``routes`` (404 elsewhere) until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.paths.append(self.path)
            site.headers.append({name.lower(): text for name, text in self.headers.items()})
            route = site.routes.get(self.path, Reply(b"no such page", 404))
            try:
                if isinstance(route, Reply):
                    _send(self, route)
                else:
                    route(self)
            except OSError:
                self.close_connection = True  # the fetcher hung up, as many tests want it to

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    site = Site(server.server_address[1], dict(routes), "https" if tls else "http")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)


def _send(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
    handler.send_response(reply.status)
    if reply.content_type is not None:
        handler.send_header("Content-Type", reply.content_type)
    for name, text in reply.headers.items():
        handler.send_header(name, text)
    handler.end_headers()
    handler.wfile.write(reply.body)


def to(location: str, status: int = 302) -> Reply:
    return Reply(status=status, headers={"Location": location})


def open_policy(
    *,
    ports: frozenset[int] | None = None,
    timeout_seconds: float = 10.0,
    max_bytes: int = 5_000_000,
) -> FetchPolicy:
    """Loopback and every port; nothing else that is not public."""
    return FetchPolicy(
        allow_networks=LOOPBACK, ports=ports, timeout_seconds=timeout_seconds, max_bytes=max_bytes
    )


def closed_port() -> int:
    """A port of loopback on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
