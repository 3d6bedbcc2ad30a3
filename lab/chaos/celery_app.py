"""``celery -A lab.chaos.celery_app`` finds the app here. Its environment is the ground's."""

from __future__ import annotations

import os
from pathlib import Path

from billing.settings import Settings
from lab.chaos.app import make_app

app = make_app(
    Settings(),
    Path(os.environ["CHAOS_TRUTH"]),
    clock_offset_seconds=float(os.environ.get("CHAOS_CLOCK_OFFSET", "0")),
)
