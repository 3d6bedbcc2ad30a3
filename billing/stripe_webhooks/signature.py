"""The signature of a webhook: from Stripe, and of now. No I/O; the time is passed in.

The age is checked in both directions: whoever records a signature that is dated ahead could replay
it later (stripe-python lets it pass). Needs no stripe-python, which is an extra.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from billing.core.errors import ConfigurationError

TOLERANCE: Final = timedelta(minutes=5)
"""How far a signature's time may be from ours, either way."""

SETTING: Final = "STRIPE_WEBHOOK_SECRET"
_SECRET: Final = re.compile(r"whsec_[!-~]+", re.ASCII)
_TIME: Final = re.compile(r"\d{1,11}", re.ASCII)


class Unsigned(Exception):  # noqa: N818 - a webhook is unsigned, which is no error of ours
    """The webhook may be anybody's; ``reason`` is safe to show and to log."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def secrets_of(setting: str) -> tuple[str, ...]:
    """The signing secrets of ``STRIPE_WEBHOOK_SECRET``: several are separated by commas.

    Raises:
        ConfigurationError: One of them is not a signing secret. No message shows it.
    """
    secrets = tuple(part.strip() for part in setting.split(",") if part.strip())
    if not all(_SECRET.fullmatch(secret) for secret in secrets):
        raise ConfigurationError(
            SETTING,
            "a signing secret begins with whsec_",
            "copy it from the event destination's page in Stripe's Workbench, not from API keys",
        )
    return secrets


def check_signature(body: bytes, header: str, secrets: Sequence[str], now: datetime) -> datetime:
    """Check the signature of a webhook; returns when Stripe signed it.

    Args:
        body: The raw bytes as they came; a body that was parsed and written again has another HMAC.
        header: ``Stripe-Signature``: ``t=<unix seconds>,v1=<hex>``, perhaps several ``v1``.
        secrets: Any of them may have signed, so that one can be replaced by another.
        now: The time.

    Raises:
        Unsigned: None of them has, or not within ``TOLERANCE`` of now.
    """
    if not header:
        raise Unsigned("there is no Stripe-Signature header")
    signed_at, signatures = _parsed(header)
    payload = b"%d.%b" % (signed_at.timestamp(), body)
    if not any(_signed_with(secret, payload, signatures) for secret in secrets):
        raise Unsigned("no signature fits the body: another secret, or the body was changed")
    if now - signed_at > TOLERANCE:
        raise Unsigned("the signature is more than five minutes old: a replay, or a wrong clock")
    if signed_at - now > TOLERANCE:
        raise Unsigned("the signature is more than five minutes ahead: a wrong clock, or a forgery")
    return signed_at


def _parsed(header: str) -> tuple[datetime, list[str]]:
    """The time that was signed, and the signatures of scheme ``v1``."""
    # Compared digests have to be ASCII, and the time that is checked the one that was signed.
    parts = [part.partition("=") for part in header.split(",")]
    times = {value for name, _, value in parts if name == "t"}
    if not header.isascii() or len(times) != 1 or not _TIME.fullmatch(text := times.pop()):
        raise Unsigned("the Stripe-Signature header is not t=<unix seconds>,v1=<hex>")
    signatures = [value for name, _, value in parts if name == "v1"]
    return datetime.fromtimestamp(int(text), UTC), signatures


def _signed_with(secret: str, payload: bytes, signatures: Sequence[str]) -> bool:
    expected = hmac.new(secret.encode(), payload, hashlib.sha256).hexdigest()
    return any(hmac.compare_digest(expected, each) for each in signatures)
