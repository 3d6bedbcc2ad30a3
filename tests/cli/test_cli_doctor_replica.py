"""The doctor on a replica that answers questions."""

from __future__ import annotations

import pytest
from commandline import Billing

from billing.health.finding import Level
from billing.health.rules import replica


@pytest.mark.parametrize(
    ("is_replica", "behind_bytes", "behind_seconds", "level", "says"),
    [
        (True, 0, 0.02, Level.OK, "20 ms behind"),
        (True, 0, 1.5, Level.WARN, "1.5 s behind"),
        (True, 4096, 3.0, Level.WARN, "4,096 bytes behind after 3.0 s"),
        (False, 0, 0.0, Level.WARN, "the primary answers"),
        (None, 0, 0.0, Level.WARN, "no answer: gone"),
    ],
)
def test_a_late_or_missing_replica_is_a_warning_and_never_a_matter_of_money(
    is_replica: bool | None, behind_bytes: int, behind_seconds: float, level: Level, says: str
):
    finding = replica(is_replica, behind_bytes, behind_seconds, problem="gone")
    assert finding.level is level
    assert says in finding.found
    assert level is Level.OK or ("no money" in finding.meaning and finding.remedy)


def test_usage_and_receipt_say_as_of_when_they_are_and_that_the_primary_stood_in(
    billing: Billing, acme: str
):
    plain = billing.json("usage", acme)
    assert "as_of" not in plain
    billing.environment["WEIGHBRIDGE_DATABASE_READ_URL"] = "postgresql://nobody@127.0.0.1:1/none"
    document = billing.json("usage", acme)
    assert document["as_of"]
    assert document["from_replica"] is False
    assert "from the primary" in billing.table("usage", acme)
    assert "from the primary" in billing.table("receipt", acme)
    assert billing.json("receipt", acme)["from_replica"] is False


@pytest.mark.rabbitmq
def test_the_doctor_tells_that_the_primary_stands_in_for_the_replica(billing: Billing):
    billing.environment["WEIGHBRIDGE_DATABASE_READ_URL"] = "postgresql://nobody@127.0.0.1:1/none"
    (found,) = [c for c in billing.json("doctor")["checks"] if c["check"] == "Replica"]
    assert found["level"] == "warn"
    assert "the primary answers" in found["found"]
