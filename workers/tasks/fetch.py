"""Fetching a page: guarded, pinned, bounded in redirects, bytes and time.

httpx reads the URL and makes the TLS context; its own client has no place where a connection can be
pinned, so the request goes through httpcore, the layer under it, with a network backend of ours.
Neither reads proxies, credentials or certificates from the environment. Nothing is kept between two
requests: no cookie, no connection, no credentials, so nothing of one customer reaches another.
"""

from __future__ import annotations

import functools
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import httpcore
import httpx

from billing.core.url_guard import FetchPolicy, Target, UrlRefused, check_addresses, check_url
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
from workers.tasks.wire import (
    BoundedBody,
    Deadline,
    PinnedBackend,
    Resolver,
    resolve_within,
    system_resolver,
)

USER_AGENT: Final = "Weighbridge/0.1"
CONTENT_TYPES: Final = frozenset({"text/html", "application/xhtml+xml", "text/plain"})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_SUCCESS: Final = range(200, 300)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page as fetched.

    ``body`` is decompressed; ``content_type`` is the whole header; ``redirects`` are the URLs that
    answered with a redirect, in order; ``elapsed_seconds`` covers all of them.
    """

    url: str
    final_url: str
    status: int
    content_type: str
    body: bytes
    elapsed_seconds: float
    redirects: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    content_type: str = ""
    body: bytes = b""
    location: str | None = None


@contextmanager
def _refused(url: str) -> Iterator[None]:
    """Turn the guard's refusal into the task's error, which names the URL."""
    try:
        yield
    except UrlRefused as refusal:
        raise RefusedError(url, refusal.reason) from None


def _nothing() -> None:
    """Do nothing on a request: the default where no one counts them."""


class Fetcher:
    """Fetches pages under a policy. Holds no connection; threads may share it.

    Args:
        policy: What a fetch may do.
        resolve: Finds the addresses of a name; asked once for each request.
        backend: Makes the connections, to checked addresses only.
        monotonic: Seconds on a clock that never steps back.
        ssl_context: What certificates are checked against; by default certifi's authorities.
    """

    def __init__(
        self,
        policy: FetchPolicy,
        *,
        resolve: Resolver = system_resolver,
        backend: httpcore.NetworkBackend | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.policy = policy
        self._resolve = resolve
        self._backend = backend or httpcore.SyncBackend()
        self._monotonic = monotonic
        self._given_ssl_context = ssl_context

    @functools.cached_property
    def _ssl_context(self) -> ssl.SSLContext:
        return self._given_ssl_context or httpx.create_ssl_context(trust_env=False)

    def fetch(self, url: str, on_request: Callable[[], None] = _nothing) -> Page:
        """Fetch one page, following redirects; each is checked as a new URL.

        Args:
            url: Where the page is.
            on_request: Called each time a connection was made to send a request through (once for
                each redirect, too), whatever becomes of it: what a proxy will charge for.

        Raises:
            FetchError: One of its subclasses; see ``workers/tasks/errors.py``.
        """
        started = self._monotonic()
        deadline = Deadline(self.policy.timeout_seconds, self._monotonic)
        redirects: list[str] = []
        target = self._checked_url(url)
        while True:
            answer = self._ask(target, deadline, on_request)
            here = str(target.url)
            if answer.location is None:
                return Page(
                    url=url,
                    final_url=here,
                    status=answer.status,
                    content_type=answer.content_type,
                    body=answer.body,
                    elapsed_seconds=self._monotonic() - started,
                    redirects=tuple(redirects),
                )
            if len(redirects) == self.policy.max_redirects:
                raise TooManyRedirectsError(
                    url, f"it was redirected more than {self.policy.max_redirects} times"
                )
            redirects.append(here)
            target = self._redirected(target, answer.location)

    def _redirected(self, target: Target, location: str) -> Target:
        try:
            joined = str(target.url.join(location))
        except (httpx.InvalidURL, ValueError):
            raise RefusedError(str(target.url), "it redirects to what is not a URL") from None
        return self._checked_url(joined)

    def _checked_url(self, text: str) -> Target:
        with _refused(text):
            return check_url(text, self.policy)

    def _ask(self, target: Target, deadline: Deadline, on_request: Callable[[], None]) -> _Answer:
        url = str(target.url)
        try:
            addresses = self._checked_addresses(target, deadline)
            pinned = None if self.policy.proxy_url else addresses
            backend = PinnedBackend(self._backend, pinned, deadline, on_request)
            with (
                self._pool(target.url, backend) as pool,
                pool.stream("GET", _core_url(target.url), headers=_headers(target.url)) as response,
            ):
                return self._read(url, response, deadline)
        except httpcore.TimeoutException:
            raise TooSlowError(
                url, f"it took more than {self.policy.timeout_seconds:g} seconds"
            ) from None
        except httpcore.ProxyError:
            raise UnreachableError(url, "the proxy would not connect to it") from None
        except httpcore.ProtocolError:
            raise UnreachableError(url, "its answer is not HTTP") from None
        except httpcore.NetworkError as error:
            raise UnreachableError(url, _network_reason(error)) from None

    def _checked_addresses(self, target: Target, deadline: Deadline) -> tuple[str, ...]:
        try:
            answers = (
                [str(target.literal)]
                if target.literal is not None
                else resolve_within(deadline, self._resolve, target.host, target.port)
            )
        except (OSError, UnicodeError):  # UnicodeError: the resolver's own idea of a bad name
            raise UnreachableError(str(target.url), "its name does not resolve") from None
        with _refused(str(target.url)):
            return check_addresses(answers, self.policy)

    def _pool(self, url: httpx.URL, backend: httpcore.NetworkBackend) -> httpcore.ConnectionPool:
        if self.policy.proxy_url is None:
            return httpcore.ConnectionPool(
                ssl_context=self._ssl_context_for(url), max_connections=1, network_backend=backend
            )
        proxy = httpx.Proxy(self.policy.proxy_url)
        return httpcore.HTTPProxy(
            proxy_url=_core_url(proxy.url),
            proxy_auth=proxy.raw_auth,
            ssl_context=self._ssl_context_for(url),
            proxy_ssl_context=self._ssl_context_for(proxy.url),
            max_connections=1,
            network_backend=backend,
        )

    def _ssl_context_for(self, url: httpx.URL) -> ssl.SSLContext | None:
        # Reading the certificate authorities takes 20 ms: only where they are needed.
        return self._ssl_context if url.scheme == "https" else None

    def _read(self, url: str, response: httpcore.Response, deadline: Deadline) -> _Answer:
        headers = httpx.Headers(response.headers)
        if response.status in _REDIRECTS and "location" in headers:
            return _Answer(response.status, location=headers["location"])
        if response.status not in _SUCCESS:
            raise BadStatusError(url, f"it answered {response.status}")
        content_type = headers.get("content-type", "")
        if content_type.partition(";")[0].strip().lower() not in CONTENT_TYPES:
            raise NotHtmlError(url, f"its content type is {content_type!r:.80}")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self.policy.max_bytes:
            raise TooLargeError(url, f"it has more than {self.policy.max_bytes} bytes")
        encoding = headers.get("content-encoding", "").strip().lower()
        body = BoundedBody(url, encoding, self.policy.max_bytes)
        for part in response.iter_stream():
            deadline.left()  # very many very small parts cost time without a wait
            body.feed(part)
        return _Answer(response.status, content_type, body.whole())


def _core_url(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
    )


def _headers(url: httpx.URL) -> list[tuple[bytes, bytes]]:
    return [
        (b"Host", url.netloc),
        (b"User-Agent", USER_AGENT.encode()),
        (b"Accept", ", ".join(sorted(CONTENT_TYPES)).encode()),
        (b"Accept-Encoding", b"gzip"),
        (b"Connection", b"close"),
    ]


def _network_reason(error: httpcore.NetworkError) -> str:
    cause = error.args[0] if error.args else None  # the pool drops ``__cause__``, not this
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {cause.verify_message}"
    if isinstance(error, httpcore.ConnectError):
        return "no connection could be made"
    return "the connection broke"


__all__ = ["CONTENT_TYPES", "USER_AGENT", "FetchError", "Fetcher", "Page"]
