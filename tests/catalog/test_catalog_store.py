"""SKUs and prices on a real PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa

from billing.catalog.skus import SkuStore
from billing.core.errors import AlreadyExists, InvalidValue, NotFound
from billing.core.sku import AdmissionPolicy, Price, Pricing, Sku, UnavailablePolicy
from billing.postgres.schema import prices, skus

pytestmark = pytest.mark.postgres

HOUR = timedelta(hours=1)


@pytest.fixture
def catalog(engine: sa.Engine) -> SkuStore:
    return SkuStore(engine)


def add(catalog: SkuStore, now: datetime, sku_id: str = "page-capture", **changes: object) -> Sku:
    arguments = {
        "unit": "page",
        "unit_price_microcredits": 1_000_000,
        "effective_from": now,
        **changes,
    }
    return catalog.add(sku_id, **arguments)  # type: ignore[arg-type] - a mix of types, by name


def count(engine: sa.Engine, table: sa.Table) -> int:
    with engine.connect() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()


def test_a_new_sku_can_be_read_back_with_its_first_price(catalog: SkuStore, now: datetime):
    added = add(
        catalog,
        now,
        "forensic-search",
        pricing="measured",
        hold_quantity=50,
        failure_policy="charge",
        denial_policy="defer",
        unavailable_policy="allow",
        allow_limit=3,
        description="Crawls a site",
    )
    assert added.pricing is Pricing.MEASURED
    assert added.unavailable_policy is UnavailablePolicy.ALLOW
    assert added.prices == (Price(1_000_000, now),)
    assert catalog.get("forensic-search") == added
    assert catalog.snapshot() == {"forensic-search": added}


def test_a_sku_is_admitted_exactly_until_it_is_told_otherwise(catalog: SkuStore, now: datetime):
    assert add(catalog, now).admission is AdmissionPolicy.EXACT
    assert add(catalog, now, "fast", admission="leased").admission is AdmissionPolicy.LEASED
    for policy in ("leased", "leased", "exact"):
        changed = catalog.set_admission("page-capture", policy)
        assert changed.admission.value == policy
        assert catalog.get("page-capture") == changed
    assert catalog.get("fast").admission is AdmissionPolicy.LEASED


def test_only_an_admission_there_is_can_be_set(catalog: SkuStore, now: datetime):
    add(catalog, now)
    with pytest.raises(InvalidValue, match="admission='free'"):
        catalog.set_admission("page-capture", "free")
    with pytest.raises(NotFound):
        catalog.set_admission("nothing", "leased")


def test_skus_are_listed_by_id(catalog: SkuStore, now: datetime):
    for sku_id in ("c", "a", "b"):
        add(catalog, now, sku_id)
    assert [each.id for each in catalog.list()] == ["a", "b", "c"]


def test_an_empty_catalogue_is_empty(catalog: SkuStore):
    assert catalog.snapshot() == {}
    assert catalog.list() == []


def test_adding_the_same_sku_again_changes_nothing(
    catalog: SkuStore, engine: sa.Engine, now: datetime
):
    first = add(catalog, now)
    assert add(catalog, now + HOUR) == first
    assert count(engine, skus) == count(engine, prices) == 1


def test_adding_a_sku_again_after_a_price_change_compares_with_its_first_price(
    catalog: SkuStore, now: datetime
):
    add(catalog, now)
    priced = catalog.set_price("page-capture", 2_000_000, now + HOUR, now=now)
    assert add(catalog, now) == priced


def test_the_same_id_with_other_content_is_refused_by_field(
    catalog: SkuStore, now: datetime, subtests: pytest.Subtests
):
    for field, change in [
        ("unit", {"unit": "search"}),
        ("unit_price_microcredits", {"unit_price_microcredits": 5}),
        ("pricing", {"pricing": "measured"}),
        ("failure_policy", {"failure_policy": "charge"}),
        ("description", {"description": "other"}),
    ]:
        with subtests.test(field=field, change=change):
            before = add(catalog, now)
            with pytest.raises(AlreadyExists, match=f"with {field}="):
                add(catalog, now, **change)
            assert catalog.get("page-capture") == before


def test_what_cannot_be_right_is_refused_before_anything_is_written(
    catalog: SkuStore, engine: sa.Engine, now: datetime, subtests: pytest.Subtests
):
    for field, change in [
        ("sku", {"sku_id": "Page"}),
        ("sku", {"sku_id": "*"}),
        ("unit", {"unit": ""}),
        ("description", {"description": "x" * 201}),
        ("pricing", {"pricing": "free"}),
        ("failure_policy", {"failure_policy": "ignore"}),
        ("denial_policy", {"denial_policy": "ignore"}),
        ("unavailable_policy", {"unavailable_policy": "open"}),
        ("admission", {"admission": "generous"}),
        ("hold_quantity", {"hold_quantity": 2}),
        ("hold_quantity", {"hold_quantity": 0, "pricing": "measured"}),
        ("hold_quantity", {"hold_quantity": -1, "pricing": "measured"}),
        ("allow_limit", {"unavailable_policy": "allow"}),
        ("allow_limit", {"unavailable_policy": "allow", "allow_limit": 2**31}),
        ("allow_limit", {"allow_limit": -1}),
        ("unit_price_microcredits", {"unit_price_microcredits": -1}),
        ("unit_price_microcredits", {"unit_price_microcredits": 1.5}),
        ("unit_price_microcredits", {"unit_price_microcredits": 2**53 + 1}),
        (
            "unit_price_microcredits",
            {"unit_price_microcredits": 2**52, "pricing": "measured", "hold_quantity": 3},
        ),
        ("instant", {"effective_from": datetime(2026, 11, 21)}),  # noqa: DTZ001 - the fault tested
    ]:
        with subtests.test(field=field, change=change):
            with pytest.raises(InvalidValue) as caught:
                add(catalog, now, **change)
            assert caught.value.field == field
            assert caught.value.remedy
            assert count(engine, skus) == 0


def test_twenty_threads_adding_one_sku_make_one(
    catalog: SkuStore, engine: sa.Engine, now: datetime
):
    with ThreadPoolExecutor(20) as pool:
        added = list(pool.map(lambda _: add(catalog, now), range(20)))
    assert len(set(added)) == 1
    assert count(engine, skus) == count(engine, prices) == 1


def test_an_unknown_sku_is_not_found(catalog: SkuStore, now: datetime, subtests: pytest.Subtests):
    for sku_id in ["nothing", "", "a\x00", "*"]:
        with subtests.test(sku_id=sku_id):
            with pytest.raises(NotFound, match="skus list"):
                catalog.get(sku_id)
            if "\x00" not in sku_id:
                with pytest.raises(NotFound, match="skus list"):
                    catalog.set_price(sku_id, 1, now, now=now)


def test_a_price_from_now_on_leaves_what_came_before(catalog: SkuStore, now: datetime):
    add(catalog, now - HOUR)
    priced = catalog.set_price("page-capture", 2_000_000, now, now=now)
    assert priced.unit_price_at(now - timedelta(milliseconds=1)) == 1_000_000
    assert priced.unit_price_at(now) == 2_000_000
    assert catalog.get("page-capture") == priced


def test_prices_are_kept_in_order_however_they_are_set(catalog: SkuStore, now: datetime):
    add(catalog, now)
    catalog.set_price("page-capture", 3, now + 2 * HOUR, now=now)
    priced = catalog.set_price("page-capture", 2, now + HOUR, now=now)
    assert [each.unit_price_microcredits for each in priced.prices] == [1_000_000, 2, 3]
    assert catalog.get("page-capture") == priced


def test_a_price_in_the_past_is_refused_and_says_from_when_on(catalog: SkuStore, now: datetime):
    before = add(catalog, now - HOUR)
    with pytest.raises(InvalidValue, match="prices already used never change") as caught:
        catalog.set_price("page-capture", 5, now - timedelta(milliseconds=1), now=now)
    assert caught.value.field == "effective_from"
    assert catalog.get("page-capture") == before


def test_the_first_price_may_begin_in_the_past(catalog: SkuStore, engine: sa.Engine, now: datetime):
    add(catalog, now)
    with engine.begin() as connection:
        connection.execute(sa.delete(prices))
    priced = catalog.set_price("page-capture", 5, now - HOUR, now=now)
    assert priced.prices == (Price(5, now - HOUR),)


def test_the_same_price_again_is_no_change_even_later(
    catalog: SkuStore, engine: sa.Engine, now: datetime
):
    add(catalog, now)
    first = catalog.set_price("page-capture", 5, now + HOUR, now=now)
    assert catalog.set_price("page-capture", 5, now + HOUR, now=now + 2 * HOUR) == first
    assert count(engine, prices) == 2


def test_another_price_from_the_same_instant_is_refused(catalog: SkuStore, now: datetime):
    add(catalog, now)
    catalog.set_price("page-capture", 5, now + HOUR, now=now)
    with pytest.raises(AlreadyExists, match="prices never change"):
        catalog.set_price("page-capture", 6, now + HOUR, now=now)


def test_prices_begin_at_whole_milliseconds(catalog: SkuStore, now: datetime):
    add(catalog, now)
    exact = now + HOUR
    priced = catalog.set_price("page-capture", 5, exact + timedelta(microseconds=999), now=now)
    assert priced.prices[-1] == Price(5, exact)


def test_a_price_that_cannot_be_right_is_refused(
    catalog: SkuStore, now: datetime, subtests: pytest.Subtests
):
    for price in [-1, 2**53 + 1, 0.5]:
        with subtests.test(price=price):
            add(catalog, now)
            with pytest.raises(InvalidValue, match=r"^unit_price_microcredits="):
                catalog.set_price("page-capture", price, now, now=now)


def test_a_price_that_makes_the_usual_hold_impossible_is_refused(catalog: SkuStore, now: datetime):
    add(catalog, now, pricing="measured", hold_quantity=1000)
    with pytest.raises(InvalidValue, match="a hold of 1000 units"):
        catalog.set_price("page-capture", 2**44, now, now=now)


def test_twenty_threads_setting_prices_lose_none(catalog: SkuStore, now: datetime):
    add(catalog, now)

    def price(number: int) -> Sku:
        return catalog.set_price("page-capture", number, now + number * HOUR, now=now)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(price, range(1, 21)))
    found = catalog.get("page-capture").prices[1:]
    assert [each.unit_price_microcredits for each in found] == list(range(1, 21))
