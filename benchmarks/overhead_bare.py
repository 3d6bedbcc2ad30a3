"""``celery -A benchmarks.overhead_bare``: Celery without Weighbridge."""

from __future__ import annotations

from benchmarks.overhead_app import make_bare_app
from billing.settings import Settings

app = make_bare_app(Settings())
