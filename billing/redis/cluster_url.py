"""The URL of a Redis Cluster. Pure."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from redis.connection import parse_url

from billing.core.errors import ConfigurationError

SCHEMES: Final = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
_DEFAULT_PORT: Final = 6379


def nodes_of(url: str) -> tuple[list[tuple[str, int]], dict[str, Any]]:
    """The nodes to begin with, and how to connect to any.

    Args:
        url: ``redis+cluster://user:password@host:port,host:port``, with redis-py's options after a
            ``?``; ``rediss+cluster`` for TLS.

    Raises:
        ConfigurationError: A port is no number, or a database is named: a cluster has one.
    """
    parts = urlsplit(url)
    login, at, hosts = parts.netloc.rpartition("@")
    if parts.path.strip("/") not in {"", "0"}:
        raise ConfigurationError(
            "REDIS_URL", "a cluster has one database", "leave out what follows the ports"
        )
    nodes: list[tuple[str, int]] = []
    for each in hosts.split(","):
        host, _, port = each.partition(":")
        if not host or (port and not port.isdecimal()):
            raise ConfigurationError(
                "REDIS_URL", f"{each!r} is no node", "write host:port,host:port"
            )
        nodes.append((host, int(port or _DEFAULT_PORT)))
    one = parts._replace(scheme=SCHEMES[parts.scheme], netloc=f"{login}{at}{nodes[0][0]}", path="")
    options: dict[str, Any] = dict(parse_url(urlunsplit(one)))  # type: ignore[no-untyped-call]
    secure = options.pop("connection_class", None) is not None
    for name in ("host", "port", "db"):
        options.pop(name, None)
    return nodes, options | ({"ssl": True} if secure else {})
