"""The ground the demo stands on: servers, and names of its own on servers that are not its own.

A server that the environment names, or a RabbitMQ found on the standard port, belongs to somebody.
There the demo makes a database, a key prefix, queues and exchanges of its own, and deletes them
when it ends. On servers that it started itself it uses the usual names and leaves the data in its
folder, so that it can be looked at afterwards.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import redis
import sqlalchemy as sa
from kombu.exceptions import OperationalError

from billing.devtools.embedded_servers import Endpoints, LocalServers
from billing.devtools.embedded_servers.visit import (
    delete_keys,
    delete_queues,
    noting,
    run_statement,
)
from billing.settings import Settings
from billing.transport.topology import dead_exchange, dead_queue
from lab.celery_exchanges import exchanges_of


class Ground:
    """Servers and names for one demo.

    Args:
        folder: The demo's own; servers that no setting names run in it.
        settings: What the environment says.
        servers: Start what is not given, in that folder.
    """

    def __init__(self, folder: Path, settings: Settings, servers: LocalServers) -> None:
        self._given = settings
        self._folder = folder
        self._servers = servers
        self._own_name = f"weighbridge_demo_{secrets.token_hex(4)}"
        self._database_made = False
        self._endpoints: Endpoints | None = None

    @property
    def endpoints(self) -> Endpoints:
        """Where the servers are, once they run."""
        if self._endpoints is None:
            raise RuntimeError("call start() first")
        return self._endpoints

    @property
    def keeps_data(self) -> bool:
        """Whether what the demo wrote into PostgreSQL is there after it."""
        return self._given.database_url is None

    @property
    def own_redis(self) -> bool:
        """Whether the Redis is the demo's."""
        return self._given.redis_url is None

    @property
    def own_broker(self) -> bool:
        """Whether the broker is the demo's: a private RabbitMQ, or its own Valkey in its place."""
        url = self.endpoints.amqp_url or ""
        private = any(status.name == "rabbitmq" for status in self._servers.status())
        return not url.startswith("amqp") or (private and self._given.amqp_url is None)

    def start(self) -> Endpoints:
        """Start what is not given, and make a database where the server is not the demo's own.

        Raises:
            LocalServerError: A server cannot be had.
        """
        started = self._servers.start(self._given, need_rabbitmq=True, allow_kombu=True)
        self._endpoints = started
        if not self.keeps_data:
            run_statement(started.database_url, f'CREATE DATABASE "{self._own_name}"')
            self._database_made = True
        return started

    def told(self) -> str:
        """Which servers are used, for people."""
        url = self.endpoints.amqp_url or ""
        broker = "RabbitMQ" if url.startswith("amqp") else "Kombu over Valkey"
        redis_name = "Valkey" if self.own_redis else "Redis"
        whose_database = _whose(self._given.database_url, self.endpoints.database_url)
        whose_redis = _whose(self._given.redis_url, self.endpoints.redis_url)
        whose_broker = "(own)" if self.own_broker else _address(url)
        stores = f"PostgreSQL {whose_database}, {redis_name} {whose_redis}"
        return f"{stores}, {broker} {whose_broker}"

    @property
    def node_name(self) -> str:
        """A name for the worker, of its own among all workers on the broker."""
        return self._own_name

    def environment(self) -> dict[str, str]:
        """What the demo's processes are told. Prefixed names: they win over plain ones."""
        names = _Names(self._own_name, own_redis=self.own_redis, own_broker=self.own_broker)
        endpoints = self.endpoints
        return {
            "WEIGHBRIDGE_DATABASE_URL": self._database_url(),
            "WEIGHBRIDGE_REDIS_URL": endpoints.redis_url,
            "WEIGHBRIDGE_AMQP_URL": endpoints.amqp_url or "",
            "WEIGHBRIDGE_RESULT_URL": endpoints.result_url,
            "WEIGHBRIDGE_LOCAL_DIR": str(self._folder),
            "WEIGHBRIDGE_SPOOL_DIR": str(self._folder / "spool"),
            "WEIGHBRIDGE_FAILPOINTS": "",
            "WEIGHBRIDGE_RELAY_IN_WORKER": "true",
            **names.environment(),
        }

    def clear_away(self, settings: Settings, result_keys: Iterable[str]) -> list[str]:
        """Delete from servers that are somebody's what the demo made there.

        Args:
            settings: The demo's, with the names of everything.
            result_keys: Celery's keys in the result backend; those with a ``*`` are patterns.

        Returns:
            What could not be deleted, for people; empty when all is gone.
        """
        left: list[str] = []
        if self._endpoints is None:
            return left
        if self._database_made:
            with noting(left, f"database {self._own_name}", sa.exc.SQLAlchemyError):
                drop = f'DROP DATABASE IF EXISTS "{self._own_name}" WITH (FORCE)'
                run_statement(self.endpoints.database_url, drop)
        if not self.own_redis:
            with noting(left, f"Redis keys {settings.redis_prefix}:*", redis.RedisError):
                delete_keys(self.endpoints.redis_url, [f"{settings.redis_prefix}:*"])
        if self._given.result_url is not None or not self.own_redis:
            with noting(left, "Celery's results (they expire in a day)", redis.RedisError):
                delete_keys(self.endpoints.result_url, result_keys)
        if not self.own_broker and self.endpoints.amqp_url:
            with noting(left, f"queues {self._own_name}*", OperationalError, OSError):
                delete_queues(
                    self.endpoints.amqp_url,
                    (settings.usage_queue, dead_queue(settings.usage_queue), settings.task_queue),
                    (
                        settings.usage_exchange,
                        dead_exchange(settings.usage_exchange),
                        *exchanges_of(settings),
                    ),
                )
        return left

    def stop(self) -> list[str]:
        """Stop the servers that were started; their names."""
        return self._servers.stop_started()

    def _database_url(self) -> str:
        if self.keeps_data:
            return self.endpoints.database_url
        return urlunsplit(urlsplit(self.endpoints.database_url)._replace(path=f"/{self._own_name}"))


def _whose(given: object, url: str) -> str:
    return "(own)" if given is None else _address(url)


def _address(url: str) -> str:
    """Host and port, without user and password."""
    return urlsplit(url).netloc.rpartition("@")[2] or "a socket"


class _Names:
    """Names on Redis and on the broker: the usual ones where the server is the demo's own."""

    def __init__(self, own_name: str, *, own_redis: bool, own_broker: bool) -> None:
        self._own_name = own_name
        self._own_redis = own_redis
        self._own_broker = own_broker

    def environment(self) -> dict[str, str]:
        usual = Settings.model_fields
        broker = {
            field: str(usual[field].default)
            if self._own_broker
            else f"{self._own_name}.{usual[field].default}"
            for field in ("usage_exchange", "usage_queue", "task_queue")
        }
        prefix = str(usual["redis_prefix"].default) if self._own_redis else self._own_name
        chosen = {**broker, "redis_prefix": prefix}
        return {f"WEIGHBRIDGE_{field.upper()}": value for field, value in chosen.items()}
