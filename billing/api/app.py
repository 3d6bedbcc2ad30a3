"""The application: its paths and the functions behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from billing.api.access import AccessLog
from billing.api.webhooks import STRIPE_PATH, Webhooks, webhook_router
from billing.container import Container
from billing.health.prometheus import CONTENT_TYPE, exposition
from billing.stripe_webhooks.signature import secrets_of

SERVES: Final = (f"POST {STRIPE_PATH}", "GET /healthz", "GET /readyz", "GET /metrics")


def create_app(
    webhooks: Webhooks, ready: Callable[[], None], figures: Callable[[], bytes]
) -> FastAPI:
    """Build the application.

    Args:
        webhooks: Their collaborators.
        ready: Raises where no request can be served now.
        figures: Makes the text for Prometheus; see ``billing.health.prometheus``.
    """
    # Nothing that describes the paths is served: whoever may call them knows them.
    app = FastAPI(title="Weighbridge", openapi_url=None)
    app.add_middleware(AccessLog)
    app.include_router(webhook_router(webhooks))

    @app.get("/healthz")
    async def alive() -> dict[str, str]:
        return {"status": "up"}

    @app.get("/readyz")
    def readiness() -> JSONResponse:
        try:
            ready()
        except sa.exc.SQLAlchemyError:
            return JSONResponse({"status": "PostgreSQL does not answer"}, status_code=503)
        return JSONResponse({"status": "ready"})

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(figures(), media_type=CONTENT_TYPE)

    return app


def app_of(container: Container) -> FastAPI:
    """Build the application on a process's servers. Nothing connects before a request comes.

    Raises:
        ConfigurationError: ``STRIPE_WEBHOOK_SECRET`` is not a signing secret.
    """
    webhooks = Webhooks(
        secrets=webhook_secrets(container),
        receive=container.reporting.webhook_processor.receive,
        sync=container.sync,
        clock=container.clock,
    )
    return create_app(webhooks, lambda: _ask(container.engine), lambda: exposition(container))


def webhook_secrets(container: Container) -> tuple[str, ...]:
    """The signing secrets of the system's settings.

    Raises:
        ConfigurationError: One of them is none.
    """
    secret = container.settings.stripe_webhook_secret
    return secrets_of(secret.get_secret_value() if secret else "")


def _ask(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
