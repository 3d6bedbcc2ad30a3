"""Who a customer is at Stripe, on a real PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
import sqlalchemy as sa

from billing.catalog.customers import CustomerStore
from billing.core.customer import Customer
from billing.core.errors import AlreadyExists, InvalidValue, NotFound
from billing.postgres.schema import customers, quota_fences

pytestmark = pytest.mark.postgres


@pytest.fixture
def accounts(engine: sa.Engine) -> CustomerStore:
    accounts = CustomerStore(engine)
    accounts.add("acme", "Acme")
    accounts.add("globex", "Globex")
    return accounts


def deleted_at_stripe(engine: sa.Engine, customer: str, when: datetime) -> None:
    change = sa.update(customers).where(customers.c.id == customer)
    with engine.begin() as connection:
        connection.execute(change.values(stripe_customer_id=None, stripe_deleted_at=when))


def link_of(customer: Customer) -> tuple[str | None, datetime | None]:
    return customer.stripe_customer_id, customer.stripe_deleted_at


def test_a_link_is_kept_and_the_same_again_is_no_change(accounts: CustomerStore):
    linked = accounts.link_stripe("acme", "cus_1")
    assert link_of(linked) == ("cus_1", None)
    assert accounts.link_stripe("acme", "cus_1") == linked == accounts.get("acme")


def test_a_link_can_be_replaced_and_taken_away(accounts: CustomerStore):
    accounts.link_stripe("acme", "cus_1")
    assert link_of(accounts.link_stripe("acme", "cus_2")) == ("cus_2", None)
    assert link_of(accounts.link_stripe("acme", None)) == (None, None)
    # And is free for another one then.
    assert link_of(accounts.link_stripe("globex", "cus_2")) == ("cus_2", None)


def test_a_stripe_customer_of_another_customer_is_refused(accounts: CustomerStore):
    accounts.link_stripe("acme", "cus_1")
    with pytest.raises(AlreadyExists, match="another customer"):
        accounts.link_stripe("globex", "cus_1")
    assert link_of(accounts.get("globex")) == (None, None)


def test_a_new_link_ends_that_the_former_one_was_deleted(
    accounts: CustomerStore, engine: sa.Engine, now: datetime
):
    deleted_at_stripe(engine, "acme", now)
    assert link_of(accounts.get("acme")) == (None, now)
    assert link_of(accounts.link_stripe("acme", None)) == (None, now)
    assert link_of(accounts.link_stripe("acme", "cus_2")) == ("cus_2", None)


def test_without_replacing_only_who_was_never_linked_is_linked(
    accounts: CustomerStore, engine: sa.Engine, now: datetime
):
    assert link_of(accounts.link_stripe("acme", "cus_1", replace=False)) == ("cus_1", None)
    assert link_of(accounts.link_stripe("acme", "cus_2", replace=False)) == ("cus_1", None)
    deleted_at_stripe(engine, "globex", now)
    assert link_of(accounts.link_stripe("globex", "cus_2", replace=False)) == (None, now)


def test_what_cannot_be_linked_says_why(accounts: CustomerStore, subtests: pytest.Subtests):
    for customer, ref, error in [
        ("nobody", "cus_1", NotFound),
        ("a\x00b", "cus_1", NotFound),
        ("acme", "", InvalidValue),
        ("acme", "cus\x00", InvalidValue),
    ]:
        with subtests.test(customer=customer, ref=ref), pytest.raises(error):
            accounts.link_stripe(customer, ref)
    assert link_of(accounts.get("acme")) == (None, None)


def test_of_many_who_link_at_once_one_is_first(accounts: CustomerStore):
    def link(number: int) -> str | None:
        return accounts.link_stripe("acme", f"cus_{number}", replace=False).stripe_customer_id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(link, range(16)))) == 1


def test_who_was_linked_since_can_still_be_added_again(accounts: CustomerStore):
    linked = accounts.link_stripe("acme", "cus_1")
    assert accounts.add("acme", "Acme") == linked
    with pytest.raises(AlreadyExists, match="with stripe_customer_id="):
        accounts.add("acme", "Acme", stripe_customer_id="cus_2")


def test_a_link_is_nothing_that_redis_has_to_know(accounts: CustomerStore, engine: sa.Engine):
    accounts.link_stripe("acme", "cus_1")
    with engine.connect() as connection:
        versions = connection.execute(sa.select(quota_fences.c.version)).scalars().all()
    assert versions == [0, 0]
