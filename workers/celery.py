"""``celery -A workers`` finds the app here."""

from __future__ import annotations

from billing.settings import Settings
from workers.app import make_app

app = make_app(Settings())
