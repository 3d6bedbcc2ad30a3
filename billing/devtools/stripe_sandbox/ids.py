"""Ids in Stripe's manner: a prefix that tells the kind, then letters and digits."""

from __future__ import annotations

import itertools
import secrets


class Ids:
    """Ids that are never given twice, also not by another sandbox.

    Args:
        run: What tells this sandbox's ids from another's; a database may remember both.
    """

    def __init__(self, run: str | None = None) -> None:
        self._run = run if run is not None else secrets.token_hex(5)
        self._numbers = itertools.count(1)

    def new(self, prefix: str) -> str:
        """The next id of this kind, for example ``cus_0f3a9c21b800000007``."""
        return f"{prefix}_{self._run}{next(self._numbers):08d}"
