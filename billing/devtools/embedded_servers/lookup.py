"""Where the servers are: what the settings name, else what runs in the local folder."""

from __future__ import annotations

from pydantic import SecretStr

from billing.core.errors import ConfigurationError
from billing.devtools.embedded_servers.servers import running_endpoints
from billing.server_urls import RESULT_DATABASE, Endpoints, sibling_database
from billing.settings import Settings


def url_of(settings: Settings, name: str) -> str:
    """The URL of one server: what the settings name, else the embedded one that is running.

    Args:
        settings: Where the servers are.
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
    """Where all the servers are.

    Raises:
        ConfigurationError: As ``url_of``.
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
