"""The ceiling, watched while the load goes on: leased + held + settled is never above granted.

At the end of a run the log alone says whether more was charged than was granted. That no instant
in between was above the ceiling is only seen at that instant: this asks Redis again and again.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

from billing.core.errors import QuotaUnavailable
from billing.core.reservation import AccountView
from billing.quota.port import QuotaStore
from lab.chaos.catalogue import CUSTOMERS

_EVERY_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Above:
    """An account that was above its ceiling; amounts in microcredits."""

    customer: str
    granted: int
    settled: int
    held: int
    leases: int

    def __str__(self) -> str:
        return (
            f"{self.customer}: settled {self.settled} and held {self.held} "
            f"({self.leases} leases) of {self.granted}"
        )


def above(account: AccountView | None) -> Above | None:
    """What is wrong with an account, if anything is; an account that Redis lacks is not above."""
    if account is None or account.available_microcredits >= 0:
        return None
    return Above(
        account.customer,
        account.granted_microcredits,
        account.settled_microcredits,
        account.held_microcredits,
        account.leases,
    )


class Ceiling:
    """Watches every customer's account in a thread of its own.

    Args:
        quota: By a way that no fault is done to.
    """

    def __init__(self, quota: QuotaStore) -> None:
        self._quota = quota
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos-ceiling", daemon=True)
        self.looked = 0
        """Accounts that were seen."""
        self.most_leases = 0
        """The most leases that one customer had at an instant."""
        self.found: list[Above] = []
        self.excused: list[Above] = []
        self.watched_to_the_end = False
        """Told by ``stop``: nothing ended the watch before."""
        self.tail_lost = False
        """Redis has lost its newest data: until a repair, its accounts may be behind the log."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self.watched_to_the_end = self._thread.is_alive()
        self._stop.set()
        self._thread.join(10)

    def look(self) -> None:
        """Look at every customer once; an account that cannot be asked for is left out."""
        for customer in CUSTOMERS:
            try:
                account = self._quota.account(customer.id)
            except QuotaUnavailable:
                return
            if account is not None:
                self.looked += 1
                self.most_leases = max(self.most_leases, account.leases)
            wrong = above(account)
            if wrong is not None:
                (self.excused if self.tail_lost else self.found).append(wrong)

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_SECONDS):
            self.look()
