"""The servers' URLs: those that the settings name, else those of embedded servers that run.

``billing.devtools.embedded_servers`` starts those and writes ``servers.json``; it is read here, so
that a worker finds its servers without the developers' tools.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretStr

from billing.core.errors import ConfigurationError
from billing.settings import Settings

RESULT_DATABASE: Final = 1
BROKER_DATABASE: Final = 2
_PROC: Final = Path("/proc/self/stat")
"""Exists on Linux. Elsewhere ``ps`` gives the same, slower and only to the second."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """URLs of the servers, and lines that a user should read.

    ``amqp_url`` is None where no message broker was asked for; it begins with ``redis:`` where
    Kombu's Redis transport takes RabbitMQ's place.
    """

    database_url: str
    redis_url: str
    amqp_url: str | None
    result_url: str
    notes: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        """Convert to environment variables, for child processes."""
        urls = {
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "AMQP_URL": self.amqp_url,
            "RESULT_URL": self.result_url,
        }
        return {name: url for name, url in urls.items() if url is not None}

    def applied_to(self, settings: Settings) -> Settings:
        """Copy ``settings`` with these URLs."""
        urls = {name.lower(): SecretStr(url) for name, url in self.environment().items()}
        return settings.model_copy(update=urls)


def sibling_database(redis_url: str, number: int) -> str:
    """Name database ``number`` of the same Redis server; another one if that is its own."""
    parts = urlsplit(redis_url)
    if parts.scheme == "unix":
        # Celery's and Kombu's way to name a database behind a Unix socket.
        query = "&".join(filter(None, [parts.query, f"virtual_host={number}"]))
        return f"redis+socket://{parts.netloc}{parts.path}?{query}"
    own = parts.path.strip("/") or "0"
    chosen = number if own != str(number) else number + 2
    return urlunsplit(parts._replace(path=f"/{chosen}"))


def masked(url: str) -> str:
    """Remove the password from ``url``."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return urlunsplit(
        parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@", 1))
    )


def url_of(settings: Settings, name: str) -> str:
    """Find the URL of one server: the one the settings name, else the embedded one that runs.

    Args:
        settings: Name servers and the local folder.
        name: ``database_url``, ``redis_url`` or ``amqp_url``.

    Raises:
        ConfigurationError: The server is neither named nor running; says which and the remedy.
    """
    given: SecretStr | None = getattr(settings, name)
    if given is not None:
        return given.get_secret_value()
    running = getattr(running_endpoints(settings.local_dir), name, None)
    if not running:
        raise ConfigurationError(
            name.upper(),
            "not set, and no embedded server is running",
            f"set {name.upper()}, or run: billing local start",
        )
    return str(running)


def endpoints_of(settings: Settings) -> Endpoints:
    """Find the URLs of all servers.

    Raises:
        ConfigurationError: One is neither named nor running; or nobody can keep Celery's results.
    """
    redis_url = url_of(settings, "redis_url")
    result_url = settings.result_url
    if result_url is None and "+cluster" in redis_url.partition("://")[0]:
        raise ConfigurationError(
            "RESULT_URL",
            "not set, and Celery's results cannot go to a Redis Cluster",
            "set RESULT_URL to a Redis of its own, or to rpc://",
        )
    return Endpoints(
        database_url=url_of(settings, "database_url"),
        redis_url=redis_url,
        amqp_url=url_of(settings, "amqp_url"),
        result_url=result_url.get_secret_value()
        if result_url
        else sibling_database(redis_url, RESULT_DATABASE),
    )


def running_endpoints(folder: Path) -> Endpoints | None:
    """Find the embedded servers of ``folder`` that run at this moment; None if there are none.

    A URL is empty where no server was started here, because the settings named one at the time. A
    file of another version, or of somebody else, counts as empty.
    """
    try:
        content = json.loads((folder / "servers.json").read_text())
        broker_url = content.get("broker_url")
    except (OSError, ValueError, AttributeError):
        return None
    try:
        urls = {
            name: str(server["url"])
            for name, server in content["servers"].items()
            if _all_run(server["processes"])
        }
    except (AttributeError, KeyError, TypeError):
        urls = {}
    if not urls and not broker_url:
        return None
    redis_url = urls.get("valkey", "")
    return Endpoints(
        database_url=urls.get("postgres", ""),
        redis_url=redis_url,
        amqp_url=urls.get("rabbitmq") or broker_url,
        result_url=sibling_database(redis_url, RESULT_DATABASE) if redis_url else "",
    )


def _all_run(processes: Iterable[Mapping[str, Any]]) -> bool:
    """Whether there are processes and each is the one that was started, not another of its pid."""
    found = [started_at(each["pid"]) == each["started"] for each in processes]
    return bool(found) and all(found)


def started_at(pid: int) -> str | None:
    """Read the start of the process of that pid, as a text to compare; None if there is none.

    A zombie counts as none: it holds no port and no file.
    """
    return _started_by_proc(pid) if _PROC.exists() else _started_by_ps(pid)


def _started_by_proc(pid: int) -> str | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    # The name, in parentheses, may hold anything; then state (3) … starttime (22): proc(5).
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"


def _started_by_ps(pid: int) -> str | None:
    answer = subprocess.run(  # noqa: S603 - fixed program, a number as its argument
        ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
    )
    state, _, started = answer.stdout.strip().partition(" ")
    return None if not started or state.startswith("Z") else started.strip()
