"""What somebody with no key, a wrong one or a live one is told."""

from __future__ import annotations

import pytest

from billing.core.errors import ConfigurationError
from billing.providers.stripe.api_key import check_key

SECRET = "4eC39HqLyjWDarjtT1zdp7dc"
TEST = f"sk_test_{SECRET}"
LIVE = f"sk_live_{SECRET}"
LOCAL = "http://127.0.0.1:12111"


def told(key: str, *, live: bool = False, base: str = "") -> str:
    with pytest.raises(ConfigurationError) as refused:
        check_key(key, live, base)
    message = str(refused.value)
    assert "Remedy: " in message
    assert SECRET not in message
    return message


@pytest.mark.parametrize("base", ["", LOCAL, "http://localhost:1", "http://[::1]:1", "https://x.y"])
@pytest.mark.parametrize("live", [False, True])
def test_a_test_mode_key_will_do(base: str, live: bool) -> None:
    check_key(TEST, live, base)


def test_a_live_key_will_do_with_the_switch() -> None:
    check_key(LIVE, True, "")
    check_key(LIVE, True, "https://api.stripe.com")


@pytest.mark.parametrize("base", ["", LOCAL])
def test_a_live_key_without_the_switch_names_the_switch(base: str) -> None:
    message = told(LIVE, base=base)
    assert "real money" in message
    assert "STRIPE_LIVE=yes" in message
    assert "sk_test_" in message


@pytest.mark.parametrize("base", [LOCAL, "https://stripe.example", "https://api.stripe.com.x.y"])
def test_a_live_key_goes_nowhere_but_to_stripe(base: str) -> None:
    message = told(LIVE, live=True, base=base)
    assert message.startswith("STRIPE_API_BASE: a live key would be sent")


@pytest.mark.parametrize("key", ["", "  ", "\n"])
def test_no_key_says_where_one_is_and_how_to_do_without(key: str) -> None:
    message = told(key)
    assert message.startswith("STRIPE_API_KEY: there is no key")
    assert "https://dashboard.stripe.com/test/apikeys" in message
    assert "ledger" in message


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("pk_test_4eC39HqLyjWDarjtT1zdp7dc", "publishable"),
        ("pk_live_4eC39HqLyjWDarjtT1zdp7dc", "publishable"),
        ("rk_test_4eC39HqLyjWDarjtT1zdp7dc", "restricted"),
        ("whsec_4eC39HqLyjWDarjtT1zdp7dc", "STRIPE_WEBHOOK_SECRET"),
        ("sk_org_4eC39HqLyjWDarjtT1zdp7dc", "organisation"),
        ("hunter2", "not a key of Stripe's"),
        ("sk_test_", "not a key of Stripe's"),
        ("sk_test_...", "not a key of Stripe's"),
        ("sk_prod_4eC39HqLyjWDarjtT1zdp7dc", "not a key of Stripe's"),
        (f'"{TEST}"', "without quotes"),
        (f" {TEST}", "without quotes or blanks"),
        (f"{TEST}\n", "without quotes or blanks"),
    ],
)
def test_a_wrong_kind_of_key_is_named(key: str, words: str) -> None:
    message = told(key, live=True)
    assert words in message
    assert "sk_test_" in message


@pytest.mark.parametrize("base", ["127.0.0.1:12111", "ftp://127.0.0.1", "http://", "http://[::1"])
def test_what_is_no_address_is_said(base: str) -> None:
    assert "is not an address" in told(TEST, base=base)


def test_a_key_is_not_sent_over_the_network_unencrypted() -> None:
    assert "unencrypted" in told(TEST, base="http://stripe.example")
