"""A core install has no stripe: nothing but Stripe itself misses it, and that says what to do."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT_STRIPE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top in {"stripe", "requests"}:
            raise ModuleNotFoundError(f"No module named {top!r}", name=top)
sys.meta_path.insert(0, Absent())
import billing.api.app, billing.container, billing.stripe_webhooks.processor
from billing.core.errors import ConfigurationError
from billing.container import ReportingServices
from billing.settings import Settings
settings = Settings(_env_file=None, stripe_api_key="sk_test_abc")
services = ReportingServices(settings, None, None, None)
assert services.provider_named("ledger").name == "ledger"
assert services.webhook_processor is not None
try:
    services.stripe
except ConfigurationError as error:
    print(error.problem, error.remedy, sep="; ")
"""


@pytest.mark.process
def test_without_its_extra_stripe_says_how_to_install_it() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_STRIPE], check=True, timeout=60, capture_output=True
    )
    said = ran.stdout.decode().strip()
    assert said == 'stripe is not installed; install it: pip install "weighbridge[stripe]"'
