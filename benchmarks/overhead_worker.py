"""``celery -A benchmarks.overhead_worker`` finds the app here."""

from __future__ import annotations

from benchmarks.overhead_app import make_bench_app
from billing.settings import Settings

app = make_bench_app(Settings())
