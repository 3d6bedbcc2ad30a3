"""Checks of Stripe's API key before anything is sent, in words for a newcomer."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from billing.core.errors import ConfigurationError

SETTING: Final = "STRIPE_API_KEY"
_WHERE: Final = (
    "copy the secret key of test mode (sk_test_...) from https://dashboard.stripe.com/test/apikeys"
)
_SECRET: Final = re.compile(r"sk_(test|live)_[A-Za-z0-9]+", re.ASCII)
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_STRIPE: Final = "api.stripe.com"
_KINDS: Final = (
    ("pk_", "this is a publishable key, made for web pages; it may not report usage"),
    ("rk_", "this is a restricted key; reporting needs meters, customers, invoices and events"),
    ("whsec_", "this is the secret of a webhook; it belongs into STRIPE_WEBHOOK_SECRET"),
    ("sk_org_", "this is the key of an organisation; reporting needs the key of one account"),
)
"""Keys of another kind by how they begin. No message shows a key."""


def check_key(key: str, live: bool, base: str) -> None:
    """Refuse to talk to Stripe with a key that cannot or must not be used.

    Args:
        key: ``STRIPE_API_KEY``.
        live: Whether ``STRIPE_LIVE`` is yes: real customers are billed.
        base: ``STRIPE_API_BASE``; empty for Stripe itself.

    Raises:
        ConfigurationError: What is wrong, and what to do.
    """
    _check_base(base)
    if not key.strip():
        raise ConfigurationError(
            SETTING,
            "there is no key, and Stripe answers nobody without one",
            f"{_WHERE}; or leave Stripe out: reports then go to the built-in ledger",
        )
    for beginning, problem in _KINDS:
        if key.startswith(beginning):
            raise ConfigurationError(SETTING, problem, _WHERE)
    found = _SECRET.fullmatch(key)
    if found is None:
        raise ConfigurationError(
            SETTING,
            "this is not a key of Stripe's: a secret key is sk_test_ or sk_live_ and then letters "
            "and digits only",
            f"{_WHERE}, the whole of it and without quotes or blanks",
        )
    if found[1] == "live":
        _check_live(live, base)


def _check_live(live: bool, base: str) -> None:
    if not live:
        raise ConfigurationError(
            SETTING,
            "this is a live key: real customers would be billed real money",
            f"to try things out, {_WHERE}; to bill, set STRIPE_LIVE=yes",
        )
    if base and urlsplit(base).hostname != _STRIPE:
        raise ConfigurationError(
            "STRIPE_API_BASE",
            "a live key would be sent to an address that is not Stripe's",
            "leave it empty with a live key, or use a test-mode key with this address",
        )


def _check_base(base: str) -> None:
    if not base:
        return
    try:
        parts = urlsplit(base)
        host = parts.hostname
    except ValueError:
        host, parts = None, urlsplit("")
    if parts.scheme not in {"http", "https"} or not host:
        raise ConfigurationError(
            "STRIPE_API_BASE",
            f"{base[:100]!r} is not an address",
            "leave it empty for Stripe itself, or name a local Stripe: http://127.0.0.1:12111",
        )
    if parts.scheme == "http" and host not in _LOOPBACK:
        raise ConfigurationError(
            "STRIPE_API_BASE",
            "the key would be sent over the network unencrypted",
            "use https, or a local Stripe on 127.0.0.1",
        )
