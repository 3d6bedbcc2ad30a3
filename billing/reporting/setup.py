"""Setting a provider up: a meter per SKU, and who every customer is there.

Everything may be run again at any time: what is there is found, and a run that dies between the
provider's making something and our writing it down is made good by the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from billing.catalog.customers import CustomerStore
from billing.core.customer import Customer
from billing.core.errors import AlreadyExists
from billing.providers.port import MeterCheck, Provider, ProviderMeter, ProviderUnavailable

GIVE_UP_AFTER: Final = 3
"""So many customers in a row without an answer, and the provider is taken to be away."""


class MeterState(StrEnum):
    """The state of a meter after the set-up."""

    THERE = "there"
    CREATED = "created"
    MISSING = "missing"
    """Not there; nothing was made, for it was a dry run or another meter differs."""
    DIFFERS = "differs"
    """It would count otherwise than is needed: nothing is sent to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterLine:
    """One SKU's meter; ``differences`` as in ``MeterCheck``."""

    meter: ProviderMeter
    provider_id: str
    state: MeterState
    differences: tuple[str, ...] = ()


class CustomerState(StrEnum):
    """The state of a customer's link after the set-up."""

    LINKED = "linked"
    """Linked before, or by somebody else meanwhile; left alone."""
    FOUND = "found"
    """Was at the provider, and is linked now."""
    CREATED = "created"
    """Made at the provider, and linked."""
    MISSING = "missing"
    """Not at the provider, and not made: a dry run, or nobody is to be made."""
    DELETED = "deleted"
    """Was deleted at the provider. Who comes after it is for a person to say."""
    FAILED = "failed"
    """Could not be linked; ``detail`` says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerLine:
    """One customer's link; ``customer_ref`` is the provider's id, empty where there is none."""

    customer: str
    state: CustomerState
    customer_ref: str = ""
    detail: str = ""


def meter_line(check: MeterCheck) -> MeterLine:
    """The line of a provider's answer about a meter. Pure."""
    if check.differences:
        state = MeterState.DIFFERS
    elif check.created:
        state = MeterState.CREATED
    else:
        state = MeterState.THERE if check.provider_id else MeterState.MISSING
    return MeterLine(
        meter=check.meter,
        provider_id=check.provider_id,
        state=state,
        differences=tuple(check.differences),
    )


def differing(lines: Iterable[MeterLine]) -> list[MeterLine]:
    """The meters for which the set-up may not go on. Pure."""
    return [line for line in lines if line.state is MeterState.DIFFERS]


def known_line(customer: Customer) -> CustomerLine | None:
    """The line of a customer that needs no question to the provider; None of others. Pure."""
    if customer.stripe_deleted_at is not None:
        return CustomerLine(customer=customer.id, state=CustomerState.DELETED)
    if customer.stripe_customer_id is None:
        return None
    return CustomerLine(
        customer=customer.id,
        state=CustomerState.LINKED,
        customer_ref=customer.stripe_customer_id,
    )


class Setup:
    """Sets a provider up.

    Args:
        provider: It.
        accounts: Where links are kept.
        take: Called before each customer the provider is asked for, to keep within its limits.
    """

    def __init__(
        self, provider: Provider, accounts: CustomerStore, take: Callable[[], object] = lambda: None
    ) -> None:
        self._provider = provider
        self._accounts = accounts
        self._take = take

    def meters(self, meters: Sequence[ProviderMeter], *, dry_run: bool) -> list[MeterLine]:
        """Compare every meter, and only if none differs create what is missing.

        Raises:
            ProviderUnavailable: There was no answer.
        """
        lines = [meter_line(one) for one in self._provider.ensure_meters(meters, dry_run=True)]
        if dry_run or differing(lines):
            return lines
        return [meter_line(one) for one in self._provider.ensure_meters(meters)]

    def customers(
        self, customers: Sequence[Customer], *, create: bool, dry_run: bool
    ) -> Iterator[CustomerLine]:
        """Link customers, one by one as the result is taken.

        Args:
            customers: Whom to look at; who is linked or was deleted is left alone.
            create: Whether to make who is not there.
            dry_run: Whether to change nothing, here and there.

        Raises:
            ProviderUnavailable: There was no answer for ``GIVE_UP_AFTER`` customers in a row. Who
                is linked by then stays linked.
        """
        unanswered = 0
        for customer in customers:
            line = known_line(customer)
            if line is None:
                try:
                    line = self._link(customer, create=create, dry_run=dry_run)
                    unanswered = 0
                except ProviderUnavailable as error:
                    unanswered += 1
                    if unanswered == GIVE_UP_AFTER:
                        raise
                    line = _failed(customer, str(error))
                except AlreadyExists as error:
                    line = _failed(customer, str(error))
            yield line

    def _link(self, customer: Customer, *, create: bool, dry_run: bool) -> CustomerLine:
        self._take()
        state = CustomerState.FOUND
        ref = self._provider.link_customer(customer.id, customer.name, dry_run=True)
        if not ref and (dry_run or not create):
            return CustomerLine(customer=customer.id, state=CustomerState.MISSING)
        if not ref:
            self._take()
            state = CustomerState.CREATED
            ref = self._provider.link_customer(customer.id, customer.name)
        if not dry_run:
            now = self._accounts.link_stripe(customer.id, ref, replace=False)
            if now.stripe_customer_id != ref:
                # Somebody linked or lost another one since the list was read: theirs stands.
                return known_line(now) or _failed(customer, "it was unlinked meanwhile; run again")
        return CustomerLine(customer=customer.id, state=state, customer_ref=ref)


def _failed(customer: Customer, detail: str) -> CustomerLine:
    return CustomerLine(customer=customer.id, state=CustomerState.FAILED, detail=detail)
