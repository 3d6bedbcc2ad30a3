"""Embedded servers for a laptop: started where no URL names one, stopped by who started them."""

from billing.devtools.embedded_servers.process import LocalServerError
from billing.devtools.embedded_servers.rabbitmq import answers
from billing.devtools.embedded_servers.servers import (
    LocalServers,
    ServerStatus,
    running,
    stop_abandoned,
)
from billing.server_urls import Endpoints

__all__ = [
    "Endpoints",
    "LocalServerError",
    "LocalServers",
    "ServerStatus",
    "answers",
    "running",
    "stop_abandoned",
]
