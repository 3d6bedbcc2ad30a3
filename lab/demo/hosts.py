"""Two small servers of the demo's own, on loopback: a forward proxy and an ill-mannered host."""

from __future__ import annotations

import http.client
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

LOOPBACK: Final = "127.0.0.1"
SLOW_SECONDS: Final = 0.3
"""How long the slow pages take."""
LEAFLET_PAGES: Final = 7
"""Pages of the small site; a deep search finds no more of them."""
_UPSTREAM_SECONDS: Final = 15


class _Handler(BaseHTTPRequestHandler):
    """One request; the server's ``answer`` says what to reply."""

    def do_GET(self) -> None:
        """Answer a GET."""
        server = self.server
        assert isinstance(server, _Server)  # noqa: S101 - told to mypy; only that server uses this
        server.note(self.path)
        status, headers, body = server.answer(self.path)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's signature
        """Nothing: the server notes the paths itself."""


Answer = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer: Callable[[str], Answer], note: Callable[[str], None]) -> None:
        super().__init__((LOOPBACK, 0), _Handler)
        self.answer = answer
        self.note = note

    def handle_error(self, request: Any, client_address: Any) -> None:
        """No traceback for a client that went away: its task ran out of time."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Host:
    """A server in threads of this process, for the length of a ``with`` block."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: list[str] = []
        self._server = _Server(self.answer, self._note)
        self.url = f"http://{LOOPBACK}:{self._server.server_port}"
        """Without a slash at its end."""

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def asked(self) -> list[str]:
        """What was asked for so far, as in the request lines."""
        with self._lock:
            return list(self._asked)

    def answer(self, path: str) -> Answer:
        """What to reply to a request."""
        raise NotImplementedError

    def _note(self, path: str) -> None:
        with self._lock:
            self._asked.append(path)


class ForwardProxy(Host):
    """A forward proxy for ``http://`` URLs on loopback; it refuses to lead anywhere else."""

    def answer(self, path: str) -> Answer:
        """The upstream's answer; 403 for another network, 502 where nobody answers."""
        target = urlsplit(path)
        if target.scheme != "http" or target.hostname != LOOPBACK or target.port is None:
            return 403, {}, b"this proxy serves http:// URLs on loopback only"
        upstream = http.client.HTTPConnection(LOOPBACK, target.port, timeout=_UPSTREAM_SECONDS)
        try:
            upstream.request("GET", target._replace(scheme="", netloc="").geturl() or "/")
            answer = upstream.getresponse()
            kept = {
                name: value
                for name in ("Content-Type", "Location")
                if (value := answer.getheader(name)) is not None
            }
            return answer.status, kept, answer.read()
        except (OSError, http.client.HTTPException):
            return 502, {}, b"the upstream does not answer"
        finally:
            upstream.close()


class DifficultHost(Host):
    """A host with bad manners.

    ``/gone/…`` is 404; ``/busy/…`` is 503 at first, then leads to ``elsewhere``; ``/slow/N.html``
    takes its time and links to the next; ``/leaflet/`` is a site of a few pages that all link to
    each other.

    Args:
        elsewhere: Makes the address that a busy path leads to in the end.
        slow_seconds: How long a slow page takes.
    """

    def __init__(
        self, elsewhere: Callable[[str], str], *, slow_seconds: float = SLOW_SECONDS
    ) -> None:
        self._elsewhere = elsewhere
        self._slow_seconds = slow_seconds
        self._visits: Counter[str] = Counter()
        super().__init__()

    def answer(self, path: str) -> Answer:
        """As the class says."""
        kind, _, rest = path.partition("?")[0].strip("/").partition("/")
        if kind == "busy":
            return self._busy(path, rest)
        if kind == "slow":
            time.sleep(self._slow_seconds)
            number = rest.removesuffix(".html")
            following = int(number) + 1 if number.isdecimal() else 1
            return _html(f"Slow page {number}", [f"/slow/{following}.html"])
        if kind == "leaflet":
            return _html(
                f"Leaflet {rest or 'cover'}",
                [f"/leaflet/{number}.html" for number in range(1, LEAFLET_PAGES)],
            )
        return 404, {"Content-Type": "text/html"}, b"<title>gone</title>"

    def _busy(self, path: str, rest: str) -> Answer:
        with self._lock:
            self._visits[path] += 1
            first = self._visits[path] == 1
        if first:
            return 503, {"Content-Type": "text/html", "Retry-After": "1"}, b"<title>busy</title>"
        return 302, {"Location": self._elsewhere(rest)}, b""


def _html(title: str, links: list[str]) -> Answer:
    anchors = "".join(f'<p><a href="{link}">{link}</a></p>' for link in links)
    head, body = f"<head><title>{title}</title></head>", f"<body>A page of {title}.{anchors}</body>"
    return 200, {"Content-Type": "text/html; charset=utf-8"}, f"<html>{head}{body}</html>".encode()
