"""``celery -A lab.bench.overhead_bare``: Celery without Weighbridge."""

from __future__ import annotations

from billing.settings import Settings
from lab.bench.overhead_app import make_bare_app

app = make_bare_app(Settings())
