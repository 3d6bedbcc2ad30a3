"""The budget rule of Lua and that of Python say the same of any account."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import (
    CUSTOMER,
    OTHER_SKU,
    SKU,
    MemoryStore,
    RedisStore,
    Store,
    account_state,
    charged,
    reserve,
    settle,
)

from billing.core.credits import MAX_MICROCREDITS
from billing.core.reservation import ALL_SKUS

pytestmark = pytest.mark.redis

AMOUNTS = st.one_of(st.integers(0, 60), st.integers(0, MAX_MICROCREDITS))
BY_SKU = st.dictionaries(st.sampled_from([ALL_SKUS, SKU, OTHER_SKU]), AMOUNTS, max_size=3)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["t1", "t2", "t3"]),
        st.sampled_from([SKU, OTHER_SKU, "third"]),
        AMOUNTS,
        st.none() | st.lists(AMOUNTS, min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=6,
)


@given(granted=AMOUNTS, settled=st.integers(0, 60), limits=BY_SKU, spent=BY_SKU, steps=STEPS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_stores_admit_refuse_and_charge_the_same(
    redis_store: RedisStore,
    granted: int,
    settled: int,
    limits: dict[str, int],
    spent: dict[str, int],
    steps: list[tuple[str, str, int, list[int] | None]],
) -> None:
    redis_store.lose_everything()
    stores: list[Store] = [MemoryStore(), redis_store]
    for store in stores:
        state = account_state(
            store,
            granted_microcredits=granted,
            settled_microcredits=settled,
            budgets=limits,
            spent=spent,
        )
        assert store.quota.load(state).value == "loaded"
    for task, sku, amount, lines in steps:
        first, second = (reserve(store, task, amount, sku=sku) for store in stores)
        assert first == second
        if lines is not None:
            first_lines, second_lines = (charged(settle(store, task, *lines)) for store in stores)
            assert first_lines == second_lines
    views = [store.quota.account(CUSTOMER) for store in stores]
    assert views[0] is not None
    assert views[1] is not None
    assert (views[0].held_microcredits, views[0].settled_microcredits, views[0].spent) == (
        views[1].held_microcredits,
        views[1].settled_microcredits,
        views[1].spent,
    )
