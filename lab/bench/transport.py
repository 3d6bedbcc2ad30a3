"""Suite transport: the publisher's batches of 500, against one event and one confirm at a time.

Both through the same ``AmqpPublisher`` to the same quorum queue, persistent and mandatory; an event
counts when RabbitMQ has confirmed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Final

from billing.core.usage_event import UsageEvent
from billing.transport.publishers import Publisher
from lab.bench.effort import Effort, Outcome
from lab.bench.events import make_event
from lab.bench.ground import Ground, Say
from lab.bench.report import compare

NAME: Final = "transport"
BATCH: Final = 500


def run(ground: Ground, effort: Effort, say: Say) -> Outcome:
    """Measure.

    Raises:
        PublishFailed: RabbitMQ did not confirm.
    """
    container = ground.container(ground.settings(NAME))
    publisher = container.publisher()
    count = max(effort.transport_batches * BATCH, effort.transport_singles)
    events = [make_event("transport", container.clock.now()) for _ in range(count)]
    batched, single = events[: effort.transport_batches * BATCH], events[: effort.transport_singles]
    _rate(publisher, events[:BATCH], BATCH)
    pairs = []
    for number in range(effort.repetitions):
        say(f"repetition {number + 1} of {effort.repetitions}")
        pairs.append((_rate(publisher, batched, BATCH), _rate(publisher, single, 1)))
    name = f"publish, batches of {BATCH}"
    return Outcome([compare(NAME, name, "events/s", "one-by-one confirms", pairs)])


def _rate(publisher: Publisher, events: Sequence[UsageEvent], batch: int) -> float:
    """Events confirmed in a second."""
    began = perf_counter()
    for start in range(0, len(events), batch):
        publisher.publish(events[start : start + batch])
    return len(events) / (perf_counter() - began)
