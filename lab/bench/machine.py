"""What the figures are measured on: processor, versions, and settings that decide durability."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any, Final, cast

import celery
import redis
import sqlalchemy as sa
from kombu import Connection

from billing import __version__
from billing.container import Container
from lab.bench.report import Context

_CPUINFO: Final = Path("/proc/cpuinfo")


def load() -> float:
    """The load average of the last minute."""
    return os.getloadavg()[0]


def context(container: Container, load_before: float) -> Context:
    """What to say of machine and servers; ``load_before`` was taken before the first suite."""
    versions = {
        "Weighbridge": __version__,
        "Python": platform.python_version(),
        "Celery": str(cast("Any", celery).__version__),
    }
    redis_version, redis_settings = _redis(container.redis)
    postgres_version, postgres_settings = _postgres(container.engine)
    versions |= redis_version | {"PostgreSQL": postgres_version}
    versions |= _broker(container.endpoints.amqp_url or "")
    return Context(
        cores=_cores(),
        model=_model(),
        versions=versions,
        settings=postgres_settings | redis_settings,
        loads=(load_before, load()),
    )


def _cores() -> int:
    """The cores this process may use, where the system tells; else all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _model() -> str:
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _redis(client: redis.Redis) -> tuple[dict[str, str], dict[str, str]]:
    info = client.info()
    valkey = info.get("valkey_version")
    version = {"Valkey": str(valkey)} if valkey else {"Redis": str(info["redis_version"])}
    try:
        found = cast("dict[str, str]", client.config_get("appendonly", "appendfsync"))
    except redis.ResponseError:
        # Managed servers do not show their configuration.
        found = {}
    return version, {name: found[name] for name in ("appendonly", "appendfsync") if name in found}


def _postgres(engine: sa.Engine) -> tuple[str, dict[str, str]]:
    def setting(name: str) -> str:
        return str(connection.execute(sa.text(f"SHOW {name}")).scalar_one())

    with engine.connect() as connection:
        names = ("fsync", "synchronous_commit", "shared_buffers")
        return setting("server_version"), {name: setting(name) for name in names}


def _broker(url: str) -> dict[str, str]:
    if not url.startswith("amqp"):
        return {"RabbitMQ": "none"}
    with Connection(url, connect_timeout=10) as connection:
        properties = cast("Any", connection.connection).server_properties
        return {"RabbitMQ": str(properties["version"])}
