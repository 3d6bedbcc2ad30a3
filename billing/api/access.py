"""One log line per request, and one for an error that nobody caught."""

from __future__ import annotations

import logging
import time
from typing import Final

import structlog
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

QUIET: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds by whoever watches; logged only where the answer is not 200."""
_MAX_PATH: Final = 200
_OK: Final = 200

_log = structlog.get_logger(__name__)


class AccessLog:
    """ASGI middleware: method, path without its query, status and time; never a body or header."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0
        began = time.perf_counter()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:  # noqa: BLE001 - the last one who can log and answer it
            _log.exception("request_failed", path=_path(scope))
            if not status:
                answer = JSONResponse({"error": "internal error"}, status_code=500)
                await answer(scope, receive, sending)
        finally:
            if status != _OK or scope["path"] not in QUIET:
                milliseconds = round((time.perf_counter() - began) * 1000, 1)
                _log.info(
                    "request",
                    method=scope["method"], path=_path(scope), status=status, ms=milliseconds,
                )  # fmt: skip


class ToStructlog(logging.Handler):
    """Carries the log lines of a library that uses ``logging`` into ours."""

    def emit(self, record: logging.LogRecord) -> None:
        """Pass one line on."""
        level = record.levelname.lower()
        log = getattr(_log, level if level in {"debug", "info", "warning", "error"} else "error")
        # As `logging.Handler.format`, but without the traceback in the sentence.
        log(record.getMessage(), logger=record.name, exc_info=record.exc_info or None)


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path[:_MAX_PATH]
