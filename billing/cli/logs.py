"""Structured logs of long-running commands: readable on a terminal, JSON lines elsewhere."""

from __future__ import annotations

import logging
import sys

import structlog

from billing.core.errors import ConfigurationError


def configure_logs(level: str) -> None:
    """Send structured logs of ``level`` and above to standard error.

    Raises:
        ConfigurationError: There is no such level.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ConfigurationError(
            "WEIGHBRIDGE_LOG_LEVEL", f"no level {level!r}", "use DEBUG, INFO, WARNING or ERROR"
        )
    renderer: structlog.typing.Processor
    exceptions: list[structlog.typing.Processor]
    if sys.stderr.isatty():
        # Its own choice prints the variables of every frame, passwords among them.
        plain = structlog.dev.plain_traceback
        renderer, exceptions = structlog.dev.ConsoleRenderer(exception_formatter=plain), []
    else:
        renderer = structlog.processors.JSONRenderer()
        exceptions = [structlog.processors.format_exc_info]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *exceptions,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        # Looked up at each line: standard error may be exchanged under a running process.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )
