"""A process's copy of the catalogue, at most ``ttl_seconds`` behind while PostgreSQL answers."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final, Protocol

import sqlalchemy as sa

from billing.catalog.skus import unknown_sku
from billing.core.clock import Clock
from billing.core.errors import WeighbridgeError
from billing.core.sku import Sku

_BETWEEN_ATTEMPTS: Final = timedelta(seconds=1)
"""A SKU that is not there, or a PostgreSQL that is away, is asked for at most this often."""


class CatalogUnavailable(WeighbridgeError):  # noqa: N818 - as QuotaUnavailable
    """PostgreSQL did not answer, and there is no copy of the catalogue. Nothing was held."""


class SnapshotSource(Protocol):
    """The source of the copy: ``billing.catalog.skus.SkuStore``."""

    def snapshot(self) -> Mapping[str, Sku]:
        """Every SKU with its prices, by id."""
        ...


class SkuCache:
    """The catalogue as of at most ``ttl_seconds`` ago, or of when PostgreSQL last answered.

    Safe for threads: one of them asks PostgreSQL, the others go on with the copy there is.

    Args:
        catalog: The source of the copy.
        clock: The time.
        ttl_seconds: The greatest age of a copy while PostgreSQL answers.
    """

    def __init__(self, catalog: SnapshotSource, clock: Clock, ttl_seconds: int) -> None:
        self._catalog = catalog
        self._clock = clock
        self._ttl = timedelta(seconds=ttl_seconds)
        self._lock = threading.Lock()
        self._skus: Mapping[str, Sku] | None = None
        self._copied_at: datetime | None = None
        self._tried_at: datetime | None = None

    def sku(self, sku_id: str) -> Sku:
        """The SKU of that id.

        Raises:
            NotFound: There is none.
            CatalogUnavailable: PostgreSQL is away and there is no copy yet.
        """
        if self._skus is None or self._older(self._copied_at, self._ttl):
            self._refresh()
        found = (self._skus or {}).get(sku_id)
        if found is None:
            self._refresh(wait=True)
            found = (self._skus or {}).get(sku_id)
        if found is None:
            raise unknown_sku(sku_id)
        return found

    def _older(self, instant: datetime | None, age: timedelta) -> bool:
        # A clock that was set back must not make a copy eternal.
        return instant is None or not timedelta(0) <= self._clock.now() - instant < age

    def _refresh(self, *, wait: bool = False) -> None:
        """Copy anew unless somebody just did; if somebody is at it, wait only where that helps."""
        if not self._lock.acquire(blocking=wait or self._skus is None):
            return
        try:
            if self._older(self._tried_at, _BETWEEN_ATTEMPTS):
                self._copy()
            elif self._skus is None:
                raise CatalogUnavailable
        finally:
            self._lock.release()

    def _copy(self) -> None:
        began = self._clock.now()
        self._tried_at = began
        try:
            self._skus = self._catalog.snapshot()
            self._copied_at = began
        except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
            if self._skus is None:
                raise CatalogUnavailable from error
