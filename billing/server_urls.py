"""Where the servers are, whoever started them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretStr

from billing.settings import Settings

RESULT_DATABASE: Final = 1
BROKER_DATABASE: Final = 2


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
        """The same as environment variables, for child processes."""
        urls = {
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "AMQP_URL": self.amqp_url,
            "RESULT_URL": self.result_url,
        }
        return {name: url for name, url in urls.items() if url is not None}

    def applied_to(self, settings: Settings) -> Settings:
        """``settings`` with these URLs."""
        urls = {name.lower(): SecretStr(url) for name, url in self.environment().items()}
        return settings.model_copy(update=urls)


def sibling_database(redis_url: str, number: int) -> str:
    """The URL of database ``number`` on the same Redis server; of another if that is its own."""
    parts = urlsplit(redis_url)
    if parts.scheme == "unix":
        # Celery's and Kombu's way to name a database behind a Unix socket.
        query = "&".join(filter(None, [parts.query, f"virtual_host={number}"]))
        return f"redis+socket://{parts.netloc}{parts.path}?{query}"
    own = parts.path.strip("/") or "0"
    chosen = number if own != str(number) else number + 2
    return urlunsplit(parts._replace(path=f"/{chosen}"))


def masked(url: str) -> str:
    """``url`` as it may be shown: without its password."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return urlunsplit(
        parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@", 1))
    )
