"""The buckets that SQL selects are all that the rules could do something with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from reporting_support import CUSTOMERS, THIS_HOUR, Container, metered
from support import NOW

from billing.postgres.schema import report_seals, usage_hourly, usage_reports
from billing.reporting.adjustments import AdjustmentTerms, BucketPlan, plan_bucket
from billing.reporting.planner import _bucket
from billing.reporting.planner_sql import DUE
from billing.reporting.usage_report import AT_REST, AttentionCause

SKU = "page-capture"
METER = metered(SKU).meter
STATES = [
    *((state, "", False) for state in ("pending", "accepted", "confirmed")),
    ("unknown", "", True),
    *(
        ("parked", cause, doubtful)
        for cause in (
            *AttentionCause, "too_old", "customer_missing", "unmapped_customer", "meter_missing",
        )
        for doubtful in (False, True)
    ),
]  # fmt: skip
AT_REST_OR_HELD = sorted({*AT_REST, AttentionCause.BY_HAND})


def rows() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """A bucket's usage and its last revision: every state, told or changed since, here or not."""
    kinds = itertools.product(STATES, (10, 12, 0), ("ledger", "file"), (METER.name, "former"))
    for number, ((state, cause, doubtful), total, provider, meter) in enumerate(kinds):
        hour = THIS_HOUR - timedelta(hours=1 + number)
        # What is at rest comes to what the providers have: here to nothing.
        stood = 0 if cause in AT_REST else 10
        for customer in CUSTOMERS:
            key = {"customer_id": customer, "sku_id": SKU, "hour": hour}
            usage = key | {
                "outcome": "succeeded", "reason": "", "events": 1, "quantity": 1,
                "amount_microcredits": total, "shortfall_microcredits": 0, "cost_micros": 0,
            }  # fmt: skip
            last = key | {
                "revision": 1, "latest": True, "provider": provider, "meter": meter,
                "overwrites": True, "identifier": f"{customer}:{number}",
                "customer_ref": customer if number % 3 or state != "parked" else None,
                "value": stood,
                "event_at": hour, "total_microcredits": stood, "held_microcredits": stood,
                "state": state, "cause": cause, "doubtful": doubtful, "next_at": NOW,
                "created_at": NOW,
            }  # fmt: skip
            yield usage, last


@pytest.mark.parametrize("column", ["id", "stripe_customer_id"])
def test_no_bucket_that_needs_something_is_passed_over(container: Container, column: str) -> None:
    usage, reports = zip(*rows(), strict=True)
    seal = {
        "provider": "ledger", "customer_id": "globex", "customer_ref": "globex",
        "meter": METER.name, "period_start": NOW - timedelta(days=400), "period_end": THIS_HOUR,
        "invoice_ref": "in_1", "billed_value": 0, "noticed_at": NOW,
    }  # fmt: skip
    parameters = {
        "meters": orjson.dumps({SKU: METER.name}).decode(), "until": NOW, "since": None,
        "at_rest": AT_REST_OR_HELD,
    }  # fmt: skip
    text = DUE[column].text
    everything = text[: text.index("WHERE CASE")] + text[text.index("ORDER BY t.customer_id") :]
    with container.engine.begin() as connection:
        connection.execute(usage_hourly.insert(), list(usage))
        connection.execute(usage_reports.insert(), list(reports))
        connection.execute(report_seals.insert(), [seal])
        selected = {row.last_id for row in connection.execute(DUE[column], parameters)}
        known = connection.execute(sa.text(everything), parameters).all()
    assert len(known) == len(reports)
    needed = set()
    for too_old in (None, THIS_HOUR):
        terms = AdjustmentTerms(
            provider="ledger", meter=METER, decimals=6, under_way=THIS_HOUR, too_old=too_old
        )
        needed |= {row.last_id for row in known if plan_bucket(_bucket(row), terms) != BucketPlan()}
    assert needed
    assert needed <= selected
    # Nor is anything read in vain that waits for its answer.
    assert not selected & {row.last_id for row in known if row.last_doubtful}
