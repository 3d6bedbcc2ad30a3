"""``billing api``: Stripe's webhooks and the health checks, over HTTP."""

from __future__ import annotations

import logging
from typing import Final

import structlog
import typer

from billing.api.access import ToStructlog
from billing.api.app import SERVES, app_of, webhook_secrets
from billing.api.server import ApiServer
from billing.cli.context import system_of
from billing.cli.logs import configure_logs
from billing.cli.output import say
from billing.cli.services import until_signalled
from billing.container import System
from billing.core.errors import ConfigurationError

_UVICORN: Final = "uvicorn.error"

_log = structlog.get_logger(__name__)


def api(context: typer.Context) -> None:
    """Serve Stripe's webhooks, until stopped (Ctrl-C finishes what is under way)."""
    system = system_of(context)
    configure_logs(system.settings.log_level)
    settings = system.settings
    server = ApiServer(app_of(system), settings.api_address, settings.api_port)
    uvicorn, handler = logging.getLogger(_UVICORN), ToStructlog()
    uvicorn.addHandler(handler)
    try:
        with until_signalled() as stop, server:
            _say_what_is_served(system, server.url)
            server.wait(stop)
            _log.info("api stopping")
    finally:
        uvicorn.removeHandler(handler)
    say("api: stopped; what was under way has ended")


def _say_what_is_served(system: System, url: str) -> None:
    secrets = webhook_secrets(system)
    mode = "live" if system.reporting.bills_live else "test"
    _log.info("api started", url=url, serves=SERVES, webhook_secrets=len(secrets), mode=mode)
    if not secrets:
        _log.warning(
            "webhooks are not taken",
            reason="STRIPE_WEBHOOK_SECRET is not set: Stripe gets 503, and delivers again",
        )
    try:
        _ = system.reporting.stripe
    except ConfigurationError as error:
        _log.warning(
            "stripe cannot be asked",
            reason=f"{error}. Webhooks that need it get 503, and are delivered again",
        )
