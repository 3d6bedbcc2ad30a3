"""Events that may be logged, for Hypothesis."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import strategies as st
from support import NOW

from billing.core.credits import MAX_MICROCREDITS
from billing.core.event_ids import event_id
from billing.core.usage_event import Outcome, UsageEvent

FIGURES = ("quantity", "shortfall_microcredits", "held_microcredits", "cost_micros", "quota_epoch")
names = st.text(
    alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30
)
amounts = st.integers(0, MAX_MICROCREDITS - 1)
offsets = st.integers(-90 * 86_400_000, 300_000).map(lambda ms: timedelta(milliseconds=ms))


@st.composite
def ordinary_events(
    draw: st.DrawFn,
    customers: st.SearchStrategy[str] = names,
    skus: st.SearchStrategy[str] = names,
) -> UsageEvent:
    """Events that may be logged, as far as can be told without the database."""
    task_id, line = draw(names), draw(names)
    outcome = draw(st.sampled_from(Outcome))
    return UsageEvent(
        id=event_id(task_id, line, NOW + draw(offsets)),
        customer=draw(customers),
        sku=draw(skus),
        line=line,
        outcome=outcome,
        reason=draw(names),
        **{name: draw(amounts) for name in FIGURES},
        amount_microcredits=0 if outcome is Outcome.DENIED else draw(amounts),
        subject=draw(st.none() | names),
        dimensions=draw(st.dictionaries(names, names, max_size=20)),
        task_id=task_id,
        task_name=draw(names),
        root_id=draw(st.none() | st.just(task_id) | names),
        parent_id=draw(st.none() | names),
        group_id=draw(st.none() | names),
        attempt=draw(st.integers(0, 2**31 - 1)),
        worker=draw(names),
        degraded=draw(st.booleans()),
        started_at=draw(st.none() | offsets.map(NOW.__add__)),
        finished_at=draw(st.none() | offsets.map(NOW.__add__)),
    )
