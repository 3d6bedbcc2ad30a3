"""Customers and budgets on a real PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial

import pytest
import sqlalchemy as sa

from billing.catalog.customers import CustomerStore
from billing.catalog.skus import SkuStore
from billing.core.customer import Budget, CustomerStatus
from billing.core.errors import AlreadyExists, InvalidValue, NotFound
from billing.postgres.schema import budgets, customers, quota_fences

pytestmark = pytest.mark.postgres


@pytest.fixture
def accounts(engine: sa.Engine) -> CustomerStore:
    return CustomerStore(engine)


@pytest.fixture
def sku(engine: sa.Engine, now: datetime) -> str:
    SkuStore(engine).add(
        "page-capture", unit="page", unit_price_microcredits=1_000_000, effective_from=now
    )
    return "page-capture"


def version(engine: sa.Engine, customer: str) -> int:
    query = sa.select(quota_fences.c.version).where(quota_fences.c.customer_id == customer)
    with engine.connect() as connection:
        return connection.execute(query).scalar_one()


def count(engine: sa.Engine, table: sa.Table) -> int:
    with engine.connect() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()


def test_a_new_customer_is_active_and_can_be_read_back(accounts: CustomerStore):
    added = accounts.add("acme", "Acme GmbH", "Europe/Berlin", "cus_1")
    assert added.status is CustomerStatus.ACTIVE
    assert (added.name, added.time_zone) == ("Acme GmbH", "Europe/Berlin")
    assert added.stripe_customer_id == "cus_1"
    assert accounts.get("acme") == added


def test_a_customer_gets_its_fence_with_it(accounts: CustomerStore, engine: sa.Engine):
    accounts.add("acme", "Acme")
    with engine.connect() as connection:
        fence = connection.execute(sa.select(quota_fences)).one()
    assert (fence.customer_id, fence.epoch, fence.version) == ("acme", 0, 0)
    assert (fence.granted_microcredits, fence.late_microcredits) == (0, 0)


def test_adding_the_same_customer_again_changes_nothing(accounts: CustomerStore, engine: sa.Engine):
    first = accounts.add("acme", "Acme", "Europe/Berlin", "cus_1")
    assert accounts.add("acme", "Acme", "Europe/Berlin", "cus_1") == first
    assert count(engine, customers) == count(engine, quota_fences) == 1
    assert version(engine, "acme") == 0


def test_adding_a_suspended_customer_again_does_not_resume_it(accounts: CustomerStore):
    accounts.add("acme", "Acme")
    accounts.set_status("acme", "suspended")
    assert accounts.add("acme", "Acme").suspended


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("name", ("acme", "Other")),
        ("time_zone", ("acme", "Acme", "Asia/Tokyo")),
        ("stripe_customer_id", ("acme", "Acme", "UTC", "cus_2")),
    ],
)
def test_the_same_id_with_other_content_is_refused_by_field(
    accounts: CustomerStore, field: str, arguments: tuple[str, ...]
):
    before = accounts.add("acme", "Acme", "UTC", "cus_1")
    full = (*arguments, *("acme", "Acme", "UTC", "cus_1")[len(arguments) :])
    with pytest.raises(AlreadyExists, match=f"with {field}="):
        accounts.add(*full)
    assert accounts.get("acme") == before


def test_one_stripe_customer_belongs_to_one_customer(accounts: CustomerStore, engine: sa.Engine):
    accounts.add("acme", "Acme", stripe_customer_id="cus_1")
    with pytest.raises(AlreadyExists, match="cus_1"):
        accounts.add("beta", "Beta", stripe_customer_id="cus_1")
    assert count(engine, customers) == count(engine, quota_fences) == 1


def test_customers_without_stripe_do_not_collide(accounts: CustomerStore):
    accounts.add("acme", "Acme")
    accounts.add("beta", "Beta")
    assert [each.stripe_customer_id for each in accounts.list()] == [None, None]


def test_what_cannot_be_right_is_refused_before_anything_is_written(
    accounts: CustomerStore, engine: sa.Engine, subtests: pytest.Subtests
):
    for field, arguments in [
        ("customer", ("a|b", "Acme")),
        ("name", ("acme", "")),
        ("time_zone", ("acme", "Acme", "Berlin")),
        ("time_zone", ("acme", "Acme", "../etc/passwd")),
        ("stripe_customer_id", ("acme", "Acme", "UTC", "cus\x00")),
    ]:
        with subtests.test(field=field, arguments=arguments):
            with pytest.raises(InvalidValue) as caught:
                accounts.add(*arguments)
            assert caught.value.field == field
            assert count(engine, customers) == 0


def test_twenty_threads_adding_one_customer_make_one(accounts: CustomerStore, engine: sa.Engine):
    with ThreadPoolExecutor(20) as pool:
        added = list(pool.map(lambda _: accounts.add("acme", "Acme"), range(20)))
    assert len(set(added)) == 1
    assert count(engine, customers) == count(engine, quota_fences) == 1


def test_customers_are_listed_by_id(accounts: CustomerStore):
    for each in ("beta", "acme", "Zeta"):
        accounts.add(each, each)
    assert {each.id for each in accounts.list()} == {"acme", "beta", "Zeta"}
    assert [each.id for each in accounts.list()] == [each.id for each in accounts.list()]


def test_an_unknown_customer_is_not_found(accounts: CustomerStore, subtests: pytest.Subtests):
    for customer in ["nobody", "", "a\x00b", "'; drop table customers --"]:
        with subtests.test(customer=customer):
            for ask in (
                partial(accounts.get, customer),
                partial(accounts.budgets, customer),
                partial(accounts.set_status, customer, "active"),
                partial(accounts.set_budget, customer, "*", 5),
            ):
                with pytest.raises(NotFound, match="customers list"):
                    ask()


def test_suspending_and_resuming_each_raise_the_version_once(
    accounts: CustomerStore, engine: sa.Engine
):
    accounts.add("acme", "Acme")
    assert accounts.set_status("acme", "suspended").suspended
    assert version(engine, "acme") == 1
    accounts.set_status("acme", "suspended")
    assert version(engine, "acme") == 1
    assert not accounts.set_status("acme", "active").suspended
    assert version(engine, "acme") == 2


def test_an_unknown_status_changes_nothing(accounts: CustomerStore, engine: sa.Engine):
    accounts.add("acme", "Acme")
    with pytest.raises(InvalidValue, match=r"^status='paused'"):
        accounts.set_status("acme", "paused")
    assert version(engine, "acme") == 0


def test_a_budget_is_set_changed_and_taken_away(
    accounts: CustomerStore, engine: sa.Engine, sku: str
):
    accounts.add("acme", "Acme")
    assert accounts.set_budget("acme", sku, 5) == Budget(
        customer="acme", sku=sku, limit_microcredits=5
    )
    accounts.set_budget("acme", sku, 7)
    assert [each.limit_microcredits for each in accounts.budgets("acme")] == [7]
    assert accounts.set_budget("acme", sku, None) is None
    assert accounts.budgets("acme") == []
    assert version(engine, "acme") == 3


def test_a_budget_that_changes_nothing_leaves_the_version(
    accounts: CustomerStore, engine: sa.Engine, sku: str
):
    accounts.add("acme", "Acme")
    accounts.set_budget("acme", sku, None)
    assert version(engine, "acme") == 0
    accounts.set_budget("acme", sku, 5)
    accounts.set_budget("acme", sku, 5)
    assert version(engine, "acme") == 1


def test_the_budget_over_all_skus_comes_first_and_needs_no_sku(accounts: CustomerStore, sku: str):
    accounts.add("acme", "Acme")
    accounts.set_budget("acme", sku, 0)
    accounts.set_budget("acme", "*", 2**53)
    assert [each.sku for each in accounts.budgets("acme")] == ["*", sku]


def test_a_budget_for_an_unknown_sku_is_refused(
    accounts: CustomerStore, engine: sa.Engine, subtests: pytest.Subtests
):
    for unknown in ["nothing", "", "a\x00"]:
        with subtests.test(unknown=unknown):
            accounts.add("acme", "Acme")
            with pytest.raises(NotFound, match="skus list"):
                accounts.set_budget("acme", unknown, 5)
            assert count(engine, budgets) == 0


@pytest.mark.parametrize("limit", [-1, 2**53 + 1])
def test_a_limit_that_cannot_be_right_is_refused(accounts: CustomerStore, limit: int):
    accounts.add("acme", "Acme")
    with pytest.raises(InvalidValue, match=r"^limit_microcredits="):
        accounts.set_budget("acme", "*", limit)
    assert accounts.budgets("acme") == []


def test_concurrent_changes_each_count_in_the_version(accounts: CustomerStore, engine: sa.Engine):
    accounts.add("acme", "Acme")
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda limit: accounts.set_budget("acme", "*", limit), range(1, 31)))
    assert version(engine, "acme") == 30
    assert len(accounts.budgets("acme")) == 1
