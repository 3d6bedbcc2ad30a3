"""Flower: ``celery -A workers flower --conf=workers/flowerconfig.py``.

Flower shows every task of every customer, and without a password to anybody who reaches its port;
so it does not start without one. It listens on loopback unless told otherwise: put a proxy with TLS
before it.
"""

from __future__ import annotations

from billing.core.errors import ConfigurationError
from billing.settings import Settings

_settings = Settings()
if _settings.flower_basic_auth is None:
    raise ConfigurationError(
        "WEIGHBRIDGE_FLOWER_BASIC_AUTH",
        "Flower would show every customer's tasks to anybody",
        "set it to user:password",
    )

basic_auth = [_settings.flower_basic_auth.get_secret_value()]
address = _settings.flower_address
port = _settings.flower_port
enable_events = True
max_tasks = 50_000
# Only looking: tasks are revoked and workers stopped from the command line.
xheaders = True
