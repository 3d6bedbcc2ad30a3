"""``celery -A lab.bench.overhead_worker`` finds the app here."""

from __future__ import annotations

from billing.settings import Settings
from lab.bench.overhead_app import make_bench_app

app = make_bench_app(Settings())
