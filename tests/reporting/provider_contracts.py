"""What the contract suite needs of a provider, and each implementation of it.

To add a provider: a ``Bench`` of its own, and its name in ``BENCHES``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from billing.reporting.provider import Provider
from billing.reporting.providers.file import FileProvider
from billing.reporting.providers.ledger import LedgerProvider


@dataclass(frozen=True)
class Bench:
    """A provider with what the suite may do around it.

    ``again`` makes another adapter to the same provider, as another process has it. ``settle``
    waits until what was accepted can be read back. ``knows_its_customers``: it refuses others.
    """

    provider: Provider
    again: Callable[[], Provider]
    knows_its_customers: bool
    settle: Callable[[], None] = lambda: None


def ledger(engine: sa.Engine, folder: Path) -> Bench:
    del folder
    return Bench(LedgerProvider(engine), lambda: LedgerProvider(engine), knows_its_customers=True)


def file(engine: sa.Engine, folder: Path) -> Bench:
    del engine
    return Bench(FileProvider(folder), lambda: FileProvider(folder), knows_its_customers=False)


BENCHES: dict[str, Callable[[sa.Engine, Path], Bench]] = {"ledger": ledger, "file": file}
