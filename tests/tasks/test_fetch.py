"""Fetching from real servers on loopback, and from played ones at public addresses."""

from __future__ import annotations

import gzip
import itertools
import json
import pickle
import socket
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler

import httpcore
import pytest
from celery import Celery
from celery.backends.base import Backend
from local_site import Reply, Route, closed_port, open_policy, page, serve, to

from billing.core.url_guard import FetchPolicy
from workers.tasks import errors
from workers.tasks.errors import (
    BadStatusError,
    FetchError,
    NotHtmlError,
    RefusedError,
    TooLargeError,
    TooManyRedirectsError,
    TooSlowError,
    UnreachableError,
)
from workers.tasks.fetch import Fetcher

HELLO = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\nhello"
ZIPPED = gzip.compress(b"hello", mtime=0)  # the same whenever it is made


class PlayedStream(httpcore.MockStream):
    closed = False

    def close(self):
        self.closed = True
        super().close()


class PlayedNetwork(httpcore.NetworkBackend):
    """Answers every connection from memory and notes where it was made to."""

    def __init__(self, *answers: bytes, refusing: frozenset[str] = frozenset()) -> None:
        self.answers = list(answers)
        self.refusing = refusing
        self.connected: list[tuple[str, int]] = []
        self.streams: list[PlayedStream] = []

    def connect_tcp(
        self,
        host: str,
        port: int,
        *_: object,
        **__: object,
    ) -> httpcore.NetworkStream:
        self.connected.append((host, port))
        if host in self.refusing:
            raise httpcore.ConnectError
        self.streams.append(PlayedStream([self.answers.pop(0)]))
        return self.streams[-1]


class PlayedResolver:
    """Gives the next answer each time it is asked, and counts."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        return self.answers.pop(0)


def never_resolve(host: str, _port: int) -> list[str]:
    raise AssertionError(f"{host} was looked up")


# -- what is fetched ------------------------------------------------------------------------------


def test_a_page_is_fetched_with_all_that_is_known_about_it():
    with serve({"/a": page("A", text="hello")}) as site:
        got = Fetcher(open_policy()).fetch(site.url("/a#part"))

    assert (got.url, got.final_url) == (site.url("/a#part"), site.url("/a"))
    assert (got.status, got.content_type, got.redirects) == (200, "text/html; charset=utf-8", ())
    assert b"hello" in got.body
    assert 0 < got.elapsed_seconds < 10


def test_a_compressed_page_is_decompressed():
    body = gzip.compress(b"<p>hello</p>" * 100)
    with serve({"/": Reply(body, headers={"Content-Encoding": "gzip"})}) as site:
        assert Fetcher(open_policy()).fetch(site.url()).body == b"<p>hello</p>" * 100


def test_only_what_a_page_needs_is_sent():
    with serve({"/": page("A")}) as site:
        Fetcher(open_policy()).fetch(site.url())

    assert set(site.headers[0]) == {"host", "user-agent", "accept", "accept-encoding", "connection"}
    assert site.headers[0]["host"] == f"127.0.0.1:{site.port}"


@pytest.mark.parametrize("content_type", ["text/html", "Application/XHTML+XML; x=y", "text/plain"])
def test_pages_of_these_content_types_are_fetched(content_type: str | None):
    with serve({"/": Reply(b"x", content_type=content_type)}) as site:
        assert Fetcher(open_policy()).fetch(site.url()).content_type == content_type


@pytest.mark.parametrize("content_type", ["application/pdf", "image/png", "text/htmlx", "", None])
def test_what_is_not_a_page_is_refused_by_its_content_type(content_type: str | None):
    with serve({"/": Reply(b"x", content_type=content_type)}) as site, pytest.raises(NotHtmlError):
        Fetcher(open_policy()).fetch(site.url())


@pytest.mark.parametrize("status", [204, 304, 400, 401, 404, 500, 503])
def test_any_answer_but_success_is_a_bad_status(status: int):
    reply = Reply(b"", status, content_type=None)
    expected = NotHtmlError if status == 204 else BadStatusError
    with serve({"/": reply}) as site, pytest.raises(expected) as bad:
        Fetcher(open_policy()).fetch(site.url())
    assert status == 204 or str(status) in bad.value.reason


def test_a_server_that_is_not_there_is_unreachable():
    with pytest.raises(UnreachableError, match="no connection"):
        Fetcher(open_policy()).fetch(f"http://127.0.0.1:{closed_port()}/")


def test_an_answer_that_is_not_http_is_unreachable():
    network = PlayedNetwork(b"SSH-2.0-OpenSSH_9.2\r\n")
    with pytest.raises(UnreachableError, match="not HTTP"):
        Fetcher(FetchPolicy(), backend=network).fetch("http://1.1.1.1/")


def test_an_answer_that_breaks_off_is_unreachable():
    network = PlayedNetwork(HELLO.replace(b": 5", b": 50"))
    with pytest.raises(UnreachableError):
        Fetcher(FetchPolicy(), backend=network).fetch("http://1.1.1.1/")


def test_a_name_that_does_not_resolve_is_unreachable():
    def resolve(_host: str, _port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    with pytest.raises(UnreachableError, match="does not resolve"):
        Fetcher(FetchPolicy(), resolve=resolve).fetch("http://nowhere.example/")


# -- where it goes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://localhost/",
        "http://10.0.0.1/",
        "http://192.168.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[fd00:ec2::254]/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
    ],
)
def test_without_an_allow_list_nothing_inside_is_connected_to(url: str):
    network = PlayedNetwork(HELLO)
    with pytest.raises(RefusedError):
        Fetcher(FetchPolicy(), backend=network).fetch(url)
    assert network.connected == []


def test_a_name_is_resolved_once_and_the_connection_made_to_what_was_checked():
    resolve = PlayedResolver(["93.184.216.34"], ["127.0.0.1"])
    network = PlayedNetwork(HELLO)

    got = Fetcher(FetchPolicy(), resolve=resolve, backend=network).fetch("http://rebind.example/")

    assert got.body == b"hello"
    assert resolve.asked == [("rebind.example", 80)]
    assert network.connected == [("93.184.216.34", 80)]


def test_a_name_that_leads_inside_and_outside_is_refused():
    network = PlayedNetwork(HELLO)
    resolve = PlayedResolver(["93.184.216.34", "10.0.0.1"])
    with pytest.raises(RefusedError):
        Fetcher(FetchPolicy(), resolve=resolve, backend=network).fetch("http://mixed.example/")
    assert network.connected == []


def test_an_address_is_not_looked_up():
    network = PlayedNetwork(HELLO)
    Fetcher(FetchPolicy(), resolve=never_resolve, backend=network).fetch("http://[2606:4700::1]/")
    assert network.connected == [("2606:4700::1", 80)]


def test_the_next_address_is_tried_when_one_does_not_answer():
    network = PlayedNetwork(HELLO, refusing=frozenset({"2606:4700::1"}))
    resolve = PlayedResolver(["2606:4700::1", "1.1.1.1"])

    got = Fetcher(FetchPolicy(), resolve=resolve, backend=network).fetch("http://two.example/")

    assert got.status == 200
    assert network.connected == [("2606:4700::1", 80), ("1.1.1.1", 80)]


def test_the_host_header_keeps_the_name_while_the_address_is_pinned():
    with serve({"/": page("A")}) as site:
        fetcher = Fetcher(open_policy(), resolve=lambda *_: ["127.0.0.1"])
        got = fetcher.fetch(site.url("/", host="name.example"))

    assert got.final_url == site.url("/", host="name.example")
    assert site.headers[0]["host"] == f"name.example:{site.port}"


def test_the_environments_proxy_is_not_used(monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    with serve({"/": page("A")}) as site:
        assert Fetcher(open_policy()).fetch(site.url()).status == 200


# -- redirects ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed(status: int):
    with serve({"/a": to("b?x=1#y", status), "/b?x=1": page("B")}) as site:
        got = Fetcher(open_policy()).fetch(site.url("/a"))
    assert (got.url, got.final_url) == (site.url("/a"), site.url("/b?x=1"))
    assert got.redirects == (site.url("/a"),)


@pytest.mark.parametrize(
    "location",
    [
        "http://10.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]/",
        "//192.168.0.1/",
        "http://user:secret@127.0.0.1/",
        "file:///etc/passwd",
        "http://2130706433/",
        "http://[broken/",
    ],
)
def test_a_redirect_is_checked_as_a_new_url(location: str):
    with serve({"/": to(location)}) as site, pytest.raises(RefusedError) as refused:
        Fetcher(open_policy()).fetch(site.url())
    assert "secret" not in str(refused.value)


def test_a_redirect_to_a_port_that_is_not_allowed_is_refused():
    with serve({"/": page("B")}) as other, serve({"/": to(other.url())}) as site:
        fetcher = Fetcher(open_policy(ports=frozenset({site.port})))
        with pytest.raises(RefusedError, match="port"):
            fetcher.fetch(site.url())
        assert other.paths == []


def test_the_name_in_a_redirect_is_resolved_and_checked_anew():
    resolve = PlayedResolver(["1.1.1.1"], ["10.0.0.1"])
    moved = b"HTTP/1.1 302 Found\r\nLocation: http://a.example/2\r\nContent-Length: 0\r\n\r\n"
    network = PlayedNetwork(moved, HELLO)
    with pytest.raises(RefusedError):
        Fetcher(FetchPolicy(), resolve=resolve, backend=network).fetch("http://a.example/1")
    assert network.connected == [("1.1.1.1", 80)]


def test_five_redirects_are_followed_and_no_sixth():
    chain = {f"/{n}": to(f"/{n + 1}") for n in range(7)}
    with serve({**chain, "/5": page("end")}) as site:
        assert len(Fetcher(open_policy()).fetch(site.url("/0")).redirects) == 5
    with serve(chain) as site:
        with pytest.raises(TooManyRedirectsError):
            Fetcher(open_policy()).fetch(site.url("/0"))
        assert site.paths == [f"/{n}" for n in range(6)]


def test_a_redirect_forwards_no_cookie_and_no_credentials():
    with serve({"/b": page("B")}) as other:
        first = Reply(
            status=302, headers={"Location": other.url("/b"), "Set-Cookie": "session=abc"}
        )
        with serve({"/a": first}) as site:
            fetcher = Fetcher(open_policy())
            fetcher.fetch(site.url("/a"))
            fetcher.fetch(other.url("/b"))
    for headers in other.headers:
        assert not {"cookie", "authorization", "referer"} & set(headers)


# -- how much and how long ------------------------------------------------------------------------


def test_a_page_of_exactly_the_limit_is_fetched_and_one_byte_more_is_not():
    with serve({"/ok": Reply(b"x" * 1000), "/more": Reply(b"x" * 1001)}) as site:
        fetcher = Fetcher(open_policy(max_bytes=1000))
        assert len(fetcher.fetch(site.url("/ok")).body) == 1000
        with pytest.raises(TooLargeError):
            fetcher.fetch(site.url("/more"))


def test_a_page_that_says_it_is_too_large_is_not_read():
    reply = Reply(b"", headers={"Content-Length": "999999999999"})
    with serve({"/": reply}) as site, pytest.raises(TooLargeError):
        Fetcher(open_policy(max_bytes=1000)).fetch(site.url())


def test_an_endless_page_is_cut_off_where_the_limit_is():
    sent = 0
    stopped = threading.Event()

    def endless(handler: BaseHTTPRequestHandler) -> None:
        nonlocal sent
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html")
        handler.end_headers()
        try:
            while sent < 200_000_000:
                sent += handler.wfile.write(b"x" * 100_000)
        finally:
            stopped.set()

    with serve({"/": endless}) as site:
        with pytest.raises(TooLargeError):
            Fetcher(open_policy(max_bytes=1_000_000)).fetch(site.url())
        assert stopped.wait(60)
    assert sent < 200_000_000


def test_a_gzip_bomb_is_refused_without_being_unpacked(monkeypatch: pytest.MonkeyPatch):
    bomb = gzip.compress(b"\0" * 50_000_000)
    assert len(bomb) < 100_000
    unpacked = []
    real = zlib.decompressobj

    class Counting:
        def __init__(self, wbits: int) -> None:
            self._real = real(wbits)

        def decompress(self, data: bytes, most: int) -> bytes:
            plain = self._real.decompress(data, most)
            unpacked.append(len(plain))
            return plain

        def __getattr__(self, name: str) -> object:
            return getattr(self._real, name)

    monkeypatch.setattr("workers.tasks.wire.zlib.decompressobj", Counting)
    reply = Reply(bomb, headers={"Content-Encoding": "gzip"})
    with serve({"/": reply}) as site, pytest.raises(TooLargeError):
        Fetcher(open_policy(max_bytes=100_000)).fetch(site.url())
    assert sum(unpacked) == 100_001


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (b"this is not gzip", "gzip"),
        (gzip.compress(b"hello" * 1000, mtime=0)[:-20], "gzip"),
        (ZIPPED + b"and more", "gzip"),
        (b"hello", "br"),
        (gzip.compress(ZIPPED, mtime=0), "gzip, gzip"),
    ],
)
def test_a_body_that_is_not_what_its_encoding_says_is_refused(body: bytes, encoding: str):
    reply = Reply(body, headers={"Content-Encoding": encoding})
    with serve({"/": reply}) as site, pytest.raises(NotHtmlError):
        Fetcher(open_policy()).fetch(site.url())


def _dripping(first: bytes, finished: threading.Event) -> Route:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(first)
        try:
            for _ in range(1000):
                handler.wfile.write(b"x")
                handler.wfile.flush()
                time.sleep(0.02)  # the server's pace is what is tested
        finally:
            finished.set()

    return drip


@pytest.mark.parametrize(
    "first",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Long: ",
        b"",
    ],
    ids=["in the body", "in a header", "from the start"],
)
def test_a_server_that_drips_is_left_at_the_deadline(first: bytes):
    finished = threading.Event()
    with serve({"/": _dripping(first, finished)}) as site:
        began = time.monotonic()
        with pytest.raises(TooSlowError):
            Fetcher(open_policy(timeout_seconds=0.4)).fetch(site.url())
        assert 0.35 < time.monotonic() - began < 3
        assert finished.wait(60)


def test_a_server_that_says_nothing_is_left_at_the_deadline():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(TooSlowError):
            Fetcher(open_policy(timeout_seconds=0.3)).fetch(f"http://127.0.0.1:{port}/")


def test_the_deadline_covers_redirects_together():
    ticks = itertools.count(step=0.5)  # each look at the clock is half a second later
    with serve({f"/{n}": to(f"/{n + 1}") for n in range(5)}) as site:
        with pytest.raises(TooSlowError):
            Fetcher(open_policy(timeout_seconds=8), monotonic=lambda: next(ticks)).fetch(
                site.url("/0")
            )
        assert 1 < len(site.paths) < 5


def test_a_resolver_that_hangs_is_left_at_the_deadline():
    release = threading.Event()

    def resolve(_host: str, _port: int) -> list[str]:
        release.wait(60)
        return ["1.1.1.1"]

    network = PlayedNetwork(HELLO)
    try:
        with pytest.raises(TooSlowError):
            Fetcher(FetchPolicy(timeout_seconds=0.2), resolve=resolve, backend=network).fetch(
                "http://slow.example/"
            )
    finally:
        release.set()
    assert network.connected == []


@pytest.mark.parametrize(
    ("first", "failure"),
    [
        (HELLO, None),
        (HELLO.replace(b"text/html", b"image/png"), NotHtmlError),
        (HELLO.replace(b": 5", b": 9999999999"), TooLargeError),
        (HELLO.replace(b"200 OK", b"500 No"), BadStatusError),
        (HELLO.replace(b"200 OK", b"302 Found\r\nLocation: http://1.1.1.1/2"), None),
    ],
)
def test_no_connection_stays_open_whatever_came_of_it(
    first: bytes, failure: type[FetchError] | None
):
    network = PlayedNetwork(first, HELLO)
    fetcher = Fetcher(FetchPolicy(), backend=network)
    if failure is None:
        fetcher.fetch("http://1.1.1.1/")
    else:
        with pytest.raises(failure):
            fetcher.fetch("http://1.1.1.1/")
    assert network.streams
    assert all(stream.closed for stream in network.streams)


# -- what a failure looks like --------------------------------------------------------------------

EVERY_ERROR = [
    FetchError,
    RefusedError,
    UnreachableError,
    TooSlowError,
    TooLargeError,
    TooManyRedirectsError,
    BadStatusError,
    NotHtmlError,
]


def test_the_list_of_errors_is_complete():
    declared = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, FetchError)
    }
    assert declared == set(EVERY_ERROR)


@pytest.mark.parametrize("kind", EVERY_ERROR)
def test_every_error_comes_back_the_same_from_celerys_json_results(kind: type[FetchError]):
    app = Celery("results", set_as_current=False)
    backend = Backend(app, serializer="json", url="memory://")
    error = kind("http://user:secret@a.example/x", "it is a test")

    stored = json.loads(json.dumps(backend.prepare_exception(error, "json")))
    back = backend.exception_to_python(stored)

    assert type(back) is kind
    assert (back.url, back.reason) == ("http://a.example/x", "it is a test")
    assert str(back) == str(error) == "http://a.example/x: it is a test"
    assert pickle.loads(pickle.dumps(error)).args == error.args


def test_a_failure_names_the_url_reached_last_not_more_than_500_characters_of_it():
    with serve({"/": to("/gone")}) as site, pytest.raises(BadStatusError) as bad:
        Fetcher(open_policy()).fetch(site.url())
    assert bad.value.url == site.url("/gone")
    assert len(FetchError("http://a.example/" + "x" * 5000, "y" * 5000).url) == 500
