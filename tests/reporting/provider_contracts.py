"""What the contract suite needs of a provider, and each implementation of it.

To add a provider: a ``Bench`` of its own, and its name in ``BENCHES``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from stripe_servers import stripe_server
from support import NOW

from billing.providers.files import FileProvider
from billing.providers.ledger import LedgerProvider
from billing.providers.port import Provider
from billing.providers.stripe.client import client_of
from billing.providers.stripe.provider import StripeProvider

STRIPE_KEY = "sk_test_4eC39HqLyjWDarjtT1zdp7dc"


@dataclass(frozen=True)
class Bench:
    """A provider with what the suite may do around it.

    ``again`` makes another adapter to the same provider, as another process has it. ``settle``
    waits until what was accepted can be read back. ``knows_its_customers``: it refuses others.
    ``says_who_is_missing``: asked for figures of a customer or meter that is not there, it says so.
    """

    provider: Provider
    again: Callable[[], Provider]
    knows_its_customers: bool
    says_who_is_missing: bool = False
    settle: Callable[[], None] = lambda: None


def ledger(engine: sa.Engine, folder: Path) -> AbstractContextManager[Bench]:
    del folder
    return nullcontext(
        Bench(LedgerProvider(engine), lambda: LedgerProvider(engine), knows_its_customers=True)
    )


def file(engine: sa.Engine, folder: Path) -> AbstractContextManager[Bench]:
    del engine
    return nullcontext(
        Bench(FileProvider(folder), lambda: FileProvider(folder), knows_its_customers=False)
    )


@contextmanager
def stripe(engine: sa.Engine, folder: Path) -> Iterator[Bench]:
    """A local Stripe. It takes a figure first, and tells of an unknown customer only later."""
    del engine, folder
    with stripe_server(NOW) as server:

        def adapter() -> StripeProvider:
            return StripeProvider(client_of(STRIPE_KEY, server.url))

        yield Bench(adapter(), adapter, knows_its_customers=False, says_who_is_missing=True)


BENCHES: dict[str, Callable[[sa.Engine, Path], AbstractContextManager[Bench]]] = {
    "ledger": ledger,
    "file": file,
    "stripe": stripe,
}
