"""A customer's balance on both sides: PostgreSQL, the truth, and Redis, the fast opinion."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from billing.cli.output import Cell
from billing.container import Container
from billing.core.clock import EPOCH
from billing.core.credits import format_credits
from billing.core.errors import QuotaUnavailable
from billing.core.periods import Period, hour_ceiling
from billing.core.reservation import AccountView

_ACCEPTED_AHEAD: Final = timedelta(days=1)
"""Events further in the future than minutes are refused, so this covers every one there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """A customer's balance.

    ``granted_microcredits`` and ``logged_microcredits`` are PostgreSQL's sums of grants and of the
    log; ``account`` is Redis's, None where it has none or, with ``unanswered``, did not say.
    """

    customer: str
    granted_microcredits: int
    logged_microcredits: int
    account: AccountView | None
    unanswered: str = ""


def balance_of(container: Container, customer: str) -> Balance:
    """Both sides of a customer's balance.

    Raises:
        NotFound: There is no such customer.
    """
    account, unanswered = None, ""
    try:
        account = container.quota.account(customer)
    except QuotaUnavailable as error:
        unanswered = str(error)
    return Balance(
        customer=customer,
        granted_microcredits=container.grants.granted(customer),
        logged_microcredits=container.usage.total(
            customer, _all_time(container.clock.now())
        ).amount_microcredits,
        account=account,
        unanswered=unanswered,
    )


def balance_document(balance: Balance) -> dict[str, object]:
    """A balance for machines; what only Redis knows is null where it did not say."""
    account = balance.account
    return {
        "customer": balance.customer,
        "granted_microcredits": balance.granted_microcredits,
        "logged_microcredits": balance.logged_microcredits,
        "settled_microcredits": account.settled_microcredits if account else None,
        "held_microcredits": account.held_microcredits if account else None,
        "available_microcredits": account.available_microcredits if account else None,
        "epoch": account.epoch if account else None,
        "version": account.version if account else None,
        "redis_error": balance.unanswered or None,
    }


def balance_facts(balance: Balance) -> list[tuple[str, Cell]]:
    """A balance for people, in credits."""
    facts: list[tuple[str, Cell]] = [
        ("granted", format_credits(balance.granted_microcredits)),
        ("in the log", format_credits(balance.logged_microcredits)),
    ]
    account = balance.account
    if account is None:
        left = format_credits(balance.granted_microcredits - balance.logged_microcredits)
        why = balance.unanswered or "no account there yet; the next task loads it from PostgreSQL"
        return [*facts, ("granted less logged", left), ("Redis", why)]
    return [
        *facts,
        ("settled", format_credits(account.settled_microcredits)),
        ("held", format_credits(account.held_microcredits)),
        ("available", format_credits(account.available_microcredits)),
    ]


def _all_time(now: datetime) -> Period:
    return Period("all", EPOCH, hour_ceiling(now + _ACCEPTED_AHEAD))
