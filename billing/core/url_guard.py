"""A guard against server-side request forgery: where ingestion tasks may go. Pure.

A customer names a URL and our worker, inside our network, goes there. So two things are judged: the
URL's form (``check_url``) and each address that its name resolves to (``check_addresses``). The
connection is then made to an address judged here, never to one looked up again.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import httpx

from billing.core.errors import WeighbridgeError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_URL_CHARACTERS: Final = 4_096
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
MAX_PORT: Final = 65_535
_MAX_NAME: Final = 253
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMERIC_LABEL: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)

# Python's ``is_global`` follows IANA's registries as of its release; these came later or differ.
_NOT_PUBLIC_V4: Final = tuple(
    ipaddress.IPv4Network(text)
    for text in ("192.0.0.0/24", "192.88.99.0/24")  # protocol assignments; 6to4 relays (RFC 7526)
)
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_V6: Final = (ipaddress.IPv6Network("3fff::/20"),)  # documentation (RFC 9637)
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052


class UrlRefused(WeighbridgeError):  # noqa: N818 - a verdict, not a fault
    """The guard does not let anybody go there. ``reason`` names no address inside the network."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchPolicy:
    """The limits of a fetch.

    ``ports`` None means any. ``timeout_seconds`` is for the whole fetch, redirects included, and
    ``max_bytes`` for the body, counted both as sent and as decompressed. ``allow_networks`` may be
    fetched from although they are not public.
    """

    allow_networks: tuple[Network, ...] = ()
    ports: frozenset[int] | None = frozenset(DEFAULT_PORTS.values())
    timeout_seconds: float = 20.0
    max_bytes: int = 5_000_000
    max_redirects: int = 5
    proxy_url: str | None = field(default=None, repr=False)  # may hold a password


@dataclass(frozen=True, slots=True)
class Target:
    """A URL whose form has been checked.

    ``literal`` is the address if the host is one; otherwise ``host`` is a name to be resolved.
    """

    url: httpx.URL
    host: str
    port: int
    literal: Address | None


def check_url(text: str, policy: FetchPolicy) -> Target:
    """Parse ``text`` into a target, if its form allows it to be fetched at all.

    One parser (httpx's) reads the URL here and for the request, so the two cannot disagree about
    which part is the host.

    Raises:
        UrlRefused: Not http or https, credentials in it, a port that is not allowed, or a host
            that is neither a plain name nor an address in its usual spelling.
    """
    if len(text) > MAX_URL_CHARACTERS:
        raise UrlRefused(f"it has more than {MAX_URL_CHARACTERS} characters")
    try:
        url = httpx.URL(text).copy_with(fragment=None)
        host = url.raw_host.decode("ascii").removesuffix(".")
    except (httpx.InvalidURL, ValueError):  # UnicodeError is a ValueError
        raise UrlRefused("it is not a URL") from None
    if url.scheme not in DEFAULT_PORTS:
        raise UrlRefused("only http and https are fetched")
    if url.userinfo:
        raise UrlRefused("it has a user name or password in it")
    port = url.port if url.port is not None else DEFAULT_PORTS[url.scheme]
    if not 0 < port <= MAX_PORT or (policy.ports is not None and port not in policy.ports):
        raise UrlRefused(f"port {port} is not one of those that may be fetched from")
    literal = _literal(host)
    if literal is None and not _is_plain_name(host):
        raise UrlRefused("its host is neither a plain name nor a plain address")
    return Target(url if literal else url.copy_with(host=host), host, port, literal)


def check_addresses(answers: Sequence[str], policy: FetchPolicy) -> tuple[str, ...]:
    """The addresses to connect to, in the order given, if every one of them may be fetched from.

    One bad answer refuses all: a name that leads both outside and inside is an attack or a mistake.

    Raises:
        UrlRefused: There is no answer, or one that is not public and not in an allowed network.
    """
    if not answers:
        raise UrlRefused("its name has no address")
    for answer in answers:
        address = _literal(answer)
        if address is None or not may_connect(address, policy.allow_networks):
            raise UrlRefused("it leads to an address that is not public")
    return tuple(dict.fromkeys(answers))


def may_connect(address: Address, allow_networks: Sequence[Network] = ()) -> bool:
    """Whether a connection to ``address`` may be made.

    An IPv6 address that carries an IPv4 one (mapped, 6to4, NAT64) is judged by what it carries.
    """
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        return False
    judged = _carried(address)
    return _is_public(judged) or any(judged in network for network in allow_networks)


def _carried(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _is_public(address: Address) -> bool:
    if not address.is_global or address.is_multicast:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_V4)
    # All that is routed on the internet is in 2000::/3; ``is_global`` also says yes to ::7f00:1.
    return address in _GLOBAL_UNICAST and not any(address in net for net in _NOT_PUBLIC_V6)


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_plain_name(host: str) -> bool:
    labels = host.split(".")
    # The C library reads 2130706433, 0x7f.1 and 0177.0.0.1 as addresses: no name ends in a number.
    return (
        len(host) <= _MAX_NAME
        and all(_LABEL.fullmatch(label) for label in labels)
        and not _NUMERIC_LABEL.fullmatch(labels[-1])
    )
