"""One process of load: tasks that hold and settle, at a steady pace, each attempt written down.

Started by the runs as ``python -m lab.scale.load FILE SECONDS RATE CUSTOMERS``, with the system's
settings in the environment, as a worker has them.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import time
import uuid
from pathlib import Path
from typing import Final

import structlog

from billing.container import Container
from billing.core.admission import TaskFacts
from billing.settings import Settings

SKU: Final = "scale-page"
CUSTOMER: Final = "scale-{:03d}"


def main(file: Path, seconds: float, rate: float, customers: int) -> None:
    """Bill tasks of random customers until the time is over."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    chance = random.Random()  # noqa: S311 - which customer is next is no secret
    with Container(Settings()) as container, file.open("w", buffering=1, encoding="utf-8") as out:
        end = time.time() + seconds
        due = time.time()
        while due < end:
            customer = CUSTOMER.format(chance.randrange(customers))
            out.write(json.dumps(attempt(container, customer)) + "\n")
            # What an outage held up is not made up for: as tasks of a worker, one after the other.
            due = max(due + 1 / rate, time.time())
            time.sleep(max(due - time.time(), 0))


def attempt(container: Container, customer: str) -> dict[str, object]:
    """One task from its hold to its settle: when, for how long, and with what end."""
    began = time.time()
    facts = TaskFacts(
        task_id=str(uuid.uuid4()),
        customer=customer,
        metered_at=container.clock.now(),
        task_name="t",
    )
    admission = container.meter.admit(facts, SKU, None)
    answered = time.time()
    document: dict[str, object] = {
        "at": began,
        "answer_seconds": answered - began,
        "customer": customer,
        "task": facts.task_id,
        "outcome": admission.reason.value if admission.reason else "admitted",
    }
    if admission.reason is None:
        settled = container.meter.settle(admission, container.meter.recorder(admission.sku))
        document["amount"] = sum(line.amount_microcredits for line in settled.lines)
        document["settle"] = settled.outcome.value
        document["settle_seconds"] = time.time() - answered
    return document


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
