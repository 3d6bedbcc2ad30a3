"""Where the demo reports its usage: a Stripe of its own on loopback, or the one that is named.

A key without an address is never used: the demo's usage has no business in anybody's account.
"""

from __future__ import annotations

import secrets
from urllib.parse import urlsplit

from billing.devtools.stripe_sandbox import SandboxServer
from billing.settings import Settings

OWN_KEY = "sk_test_demo"
"""The local Stripe takes any key of test mode."""
_FAST = "200"


class Till:
    """A local Stripe for one demo.

    Args:
        given: What the environment says; with ``STRIPE_API_BASE``, that one is used.
    """

    def __init__(self, given: Settings) -> None:
        self._given = given
        self._server: SandboxServer | None = None

    def start(self) -> None:
        """Start it, unless one is named."""
        if not self._given.stripe_api_base:
            self._server = SandboxServer().start()

    def stop(self) -> None:
        """Stop it, if it was started here."""
        if self._server is not None:
            self._server.stop()

    def environment(self) -> dict[str, str]:
        """What the demo's processes are told. Prefixed names: they win over plain ones."""
        key = self._given.stripe_api_key
        if self._server is not None:
            where = {
                "WEIGHBRIDGE_STRIPE_API_BASE": self._server.url,
                "WEIGHBRIDGE_STRIPE_API_KEY": OWN_KEY,
                "WEIGHBRIDGE_ENVIRONMENT": "demo",
                "WEIGHBRIDGE_REPORT_RATE": _FAST,
            }
        else:
            where = {
                "WEIGHBRIDGE_STRIPE_API_BASE": self._given.stripe_api_base,
                "WEIGHBRIDGE_STRIPE_API_KEY": key.get_secret_value() if key else OWN_KEY,
                # Meters of its own: what earlier demos reported there is not this one's.
                "WEIGHBRIDGE_ENVIRONMENT": f"demo-{secrets.token_hex(4)}",
            }
        return {**where, "WEIGHBRIDGE_PROVIDER": "stripe", "WEIGHBRIDGE_STRIPE_LIVE": "no"}

    def told(self) -> str:
        """Which one it is, for people."""
        if self._server is not None:
            return "the demo's own local Stripe"
        return f"the Stripe at {urlsplit(self._given.stripe_api_base).netloc}"
