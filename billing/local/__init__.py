"""Embedded servers for a laptop: started where no URL names one, stopped by who started them."""

from billing.local.endpoints import Endpoints
from billing.local.process import LocalServerError
from billing.local.rabbitmq import answers
from billing.local.servers import (
    LocalServers,
    ServerStatus,
    running,
    running_endpoints,
    stop_abandoned,
)

__all__ = [
    "Endpoints",
    "LocalServerError",
    "LocalServers",
    "ServerStatus",
    "answers",
    "running",
    "running_endpoints",
    "stop_abandoned",
]
