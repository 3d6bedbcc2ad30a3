"""``billing api``: Stripe's webhooks and the health checks, over HTTP."""

from __future__ import annotations

import logging
from typing import Final

import structlog
import typer

from billing.api.access import ToStructlog
from billing.api.app import SERVES, app_of, webhook_secrets
from billing.api.server import ApiServer
from billing.cli.context import container_of
from billing.cli.logs import configure_logs
from billing.cli.output import say
from billing.cli.services import until_signalled
from billing.container import Container
from billing.core.errors import ConfigurationError

_UVICORN: Final = "uvicorn.error"

_log = structlog.get_logger(__name__)


def api(context: typer.Context) -> None:
    """Serve Stripe's webhooks, until stopped (Ctrl-C finishes what is under way)."""
    container = container_of(context)
    configure_logs(container.settings.log_level)
    settings = container.settings
    server = ApiServer(app_of(container), settings.api_address, settings.api_port)
    uvicorn, handler = logging.getLogger(_UVICORN), ToStructlog()
    uvicorn.addHandler(handler)
    try:
        with until_signalled() as stop, server:
            _say_what_is_served(container, server.url)
            server.wait(stop)
            _log.info("api_stopping")
    finally:
        uvicorn.removeHandler(handler)
    say("api: stopped; what was under way has ended")


def _say_what_is_served(container: Container, url: str) -> None:
    secrets = webhook_secrets(container)
    mode = "live" if container.reporting.bills_live else "test"
    _log.info("api_started", url=url, serves=SERVES, webhook_secrets=len(secrets), mode=mode)
    if not secrets:
        _log.warning(
            "webhooks_refused",
            error="STRIPE_WEBHOOK_SECRET is not set: Stripe gets 503, and delivers again",
        )
    try:
        _ = container.reporting.stripe
    except ConfigurationError as error:
        _log.warning(
            "stripe_unavailable",
            error=f"{error}. Webhooks that need it get 503, and are delivered again",
        )
