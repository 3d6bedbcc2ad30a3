"""How a day stands between log, reports and provider; and why a report is not sent again."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any

import pytest
from support import NOW

from billing.cli.reconcile import REPORTED_BY, Agreement, agreement_of
from billing.cli.report_tables import why_not_sent
from billing.core.periods import hour_floor
from billing.providers.report_value import MAX_HOUR_VALUE
from billing.reporting.comparison import HourDiffers, ProviderDay
from billing.reporting.listing import ReportRow
from billing.reporting.usage_report import ReportState

DAY = date(2026, 11, 9)
END = datetime.fromisoformat("2026-11-10T00:00:00Z")
GOOD = ProviderDay(
    customer="acme", sku="page-capture", day=DAY, meter="m", customer_ref="cus_1",
    logged_microcredits=5_000_000, accepted_microcredits=5_000_000, accepted=5_000_000,
    read=5_000_000,
)  # fmt: skip
HOURS = (HourDiffers(hour=END - timedelta(hours=3), accepted=1, read=2),)


@pytest.mark.parametrize(
    ("changes", "after", "agreement"),
    [
        ({}, timedelta(0), Agreement.AGREES),
        ({"hours": HOURS, "read": 5_000_001}, timedelta(0), Agreement.DIFFERS),
        ({"hours": HOURS, "settling": True}, timedelta(0), Agreement.UNDER_WAY),
        ({"read": None, "problem": "no answer"}, timedelta(0), Agreement.UNREAD),
        # Nothing was accepted and nothing is known there: it waits to be reported.
        ({"read": None, "accepted_microcredits": 0}, timedelta(0), Agreement.UNDER_WAY),
        ({"read": None, "accepted_microcredits": 0}, REPORTED_BY, Agreement.UNREPORTED),
        ({"logged_microcredits": 6_000_000}, timedelta(hours=-5), Agreement.UNDER_WAY),
        ({"logged_microcredits": 6_000_000}, REPORTED_BY, Agreement.UNREPORTED),
        ({"logged_microcredits": 4_000_000}, REPORTED_BY, Agreement.UNREPORTED),
    ],
    ids=str,
)
def test_how_a_day_stands(changes: dict[str, Any], after: timedelta, agreement: Agreement):
    day = replace(GOOD, **changes)
    assert agreement_of(day, decimals=6, now=END + after) is agreement


@pytest.mark.parametrize(
    ("decimals", "agreement"), [(6, Agreement.UNREPORTED), (2, Agreement.AGREES)]
)
def test_less_than_a_unit_of_the_meter_is_nothing_to_report(decimals: int, agreement: Agreement):
    day = replace(GOOD, logged_microcredits=5_009_999)
    assert agreement_of(day, decimals=decimals, now=END + REPORTED_BY) is agreement


HOUR = hour_floor(NOW)
PARKED = ReportRow(
    id=1, customer="acme", sku="page-capture", hour=HOUR, revision=1, latest=True,
    provider="stripe", meter="m", overwrites=True, identifier="i", customer_ref="cus_1", value=1,
    event_at=HOUR, total_microcredits=1, held_microcredits=1, state=ReportState.NEEDS_ATTENTION,
    cause="by_hand", detail="", doubtful=False, attempts=1, next_at=HOUR, lease_until=None,
    created_at=HOUR,
    first_sent_at=None, answered_at=None, confirm_at=None, readings=0, resent=0, confirmed_at=None,
    amount_microcredits=1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"latest": False}, "a later revision"),
        ({"state": ReportState.SENDING}, "it is sending, not parked"),
        ({"customer_ref": None}, "link the customer"),
        ({"cause": "nothing_to_tell"}, "comes to nothing"),
        ({"held_microcredits": -1}, "below zero"),
        ({"value": MAX_HOUR_VALUE + 1}, "too large"),
        ({"cause": "below_unit"}, "less than one unit"),
    ],
    ids=str,
)
def test_why_a_report_is_not_sent_again(changes: dict[str, Any], said: str):
    assert said in why_not_sent(replace(PARKED, **changes))
