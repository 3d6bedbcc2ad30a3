"""Where the demo reports to: its own local Stripe, or the one that is named; never an account."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from pydantic import SecretStr

from billing.providers.stripe.api_key import check_key
from billing.settings import Settings
from lab.demo.till import OWN_KEY, Till

KEY = "sk_test_somebodys"


@pytest.fixture
def own() -> Iterator[Till]:
    till = Till(Settings(stripe_api_base="", stripe_api_key=SecretStr(KEY)))
    till.start()
    yield till
    till.stop()


def test_without_an_address_it_is_a_local_stripe_and_no_key_of_anybodys(own: Till) -> None:
    environment = own.environment()
    assert environment["WEIGHBRIDGE_STRIPE_API_KEY"] == OWN_KEY
    assert KEY not in environment.values()
    url = environment["WEIGHBRIDGE_STRIPE_API_BASE"]
    meters = httpx.get(f"{url}/v1/billing/meters", auth=(OWN_KEY, ""), trust_env=False)
    assert meters.json()["data"] == []
    check_key(OWN_KEY, live=False, base=url)


def test_a_named_address_is_used_with_meters_of_the_demos_own() -> None:
    given = Settings(stripe_api_base="http://127.0.0.1:12111", stripe_api_key=SecretStr(KEY))
    till = Till(given)
    till.start()
    first, second = till.environment(), Till(given).environment()
    till.stop()
    assert first["WEIGHBRIDGE_STRIPE_API_BASE"] == "http://127.0.0.1:12111"
    assert first["WEIGHBRIDGE_STRIPE_API_KEY"] == KEY
    assert first["WEIGHBRIDGE_ENVIRONMENT"] != second["WEIGHBRIDGE_ENVIRONMENT"]
    assert "127.0.0.1:12111" in till.told()


def test_it_is_never_live() -> None:
    given = Settings(stripe_api_base="http://127.0.0.1:12111", stripe_live=True)
    environment = Till(given).environment()
    assert environment["WEIGHBRIDGE_STRIPE_LIVE"] == "no"
    assert environment["WEIGHBRIDGE_PROVIDER"] == "stripe"
