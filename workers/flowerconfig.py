"""Settings of Flower, which does not start without a password.

::

    celery -A workers flower --conf=$(python -m workers.flowerconfig)

Flower shows every task of every customer to whoever reaches its port. So it needs
``WEIGHBRIDGE_FLOWER_BASIC_AUTH`` (``user:password``), and listens on loopback unless told
otherwise; put a proxy with TLS before it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from billing.core.errors import ConfigurationError
from billing.settings import Settings

EX_CONFIG = 78
"""The exit code for a configuration error (sysexits.h), as a worker's that refuses to start."""


def _password(settings: Settings) -> str:
    secret = settings.flower_basic_auth
    user, _, password = secret.get_secret_value().partition(":") if secret else ("", "", "")
    if not user or not password:
        raise ConfigurationError(
            "WEIGHBRIDGE_FLOWER_BASIC_AUTH",
            "Flower would show every customer's tasks to anybody",
            "set it to user:password",
        )
    return f"{user}:{password}"


def _settings() -> Settings:
    try:
        settings = Settings()
        _password(settings)
    except ConfigurationError as error:
        sys.stderr.write(f"Flower does not start: {error}\n")
        raise SystemExit(EX_CONFIG) from None
    return settings


if __name__ == "__main__":
    # The path is given in any case: it is Flower that refuses, with its exit code.
    sys.stdout.write(f"{Path(__file__).resolve()}\n")
else:
    _found = _settings()
    basic_auth = [_password(_found)]
    address = _found.flower_address
    port = _found.flower_port
    enable_events = True
    max_tasks = 50_000
    # Only looking: tasks are revoked and workers stopped from the command line.
    xheaders = True
