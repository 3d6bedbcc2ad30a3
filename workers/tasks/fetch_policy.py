"""The policy of fetches, read from the settings."""

from __future__ import annotations

import ipaddress

import httpx

from billing.core.errors import ConfigurationError
from billing.core.url_guard import DEFAULT_PORTS, MAX_PORT, FetchPolicy, Network
from billing.settings import Settings


def policy_from(settings: Settings, *, through_proxy: bool = False) -> FetchPolicy:
    """Read the policy from the settings.

    Args:
        settings: The fields ``fetch_*`` and ``proxy_url``.
        through_proxy: Whether to go through ``proxy_url``, where it is set.

    Raises:
        ConfigurationError: A network, port or proxy cannot be read.
    """
    proxy = settings.proxy_url.get_secret_value() if settings.proxy_url and through_proxy else None
    if proxy is not None:
        _check_proxy(proxy)
    return FetchPolicy(
        allow_networks=_networks(settings.fetch_allow_networks),
        ports=_ports(settings.fetch_ports),
        timeout_seconds=float(settings.fetch_timeout_seconds),
        max_bytes=settings.fetch_max_bytes,
        proxy_url=proxy,
    )


def _networks(text: str) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigurationError(
            "WEIGHBRIDGE_FETCH_ALLOW_NETWORKS",
            str(error),
            "write networks as 10.1.0.0/16,fd00:1::/64",
        ) from None


def _ports(text: str) -> frozenset[int] | None:
    if text.strip() == "*":
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(
        part.isdecimal() and part.isascii() and 0 < int(part) <= MAX_PORT for part in parts
    ):
        raise ConfigurationError(
            "WEIGHBRIDGE_FETCH_PORTS", f"{text!r:.80} is not a list of ports", "write 80,443 or *"
        )
    return frozenset(int(part) for part in parts)


def _check_proxy(text: str) -> None:
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError):
        url = httpx.URL("")
    if url.scheme not in DEFAULT_PORTS or not url.host:
        raise ConfigurationError(
            "WEIGHBRIDGE_PROXY_URL",
            "it is not the URL of an HTTP proxy",  # not shown: it may hold a password
            "write http://user:password@proxy.example:8080",
        )
