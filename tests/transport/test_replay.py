"""What a node does when Redis lost data, on a Redis of the test's own that may be flushed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from support import make_event
from usage_support import RecordingPublisher, Store

from billing.core.clock import ManualClock, SystemClock
from billing.core.errors import PublishFailed
from billing.core.usage_event import UsageEvent
from billing.transport.journal import Journal
from billing.transport.journal_replay import AGAIN_SECONDS, CHECK_SECONDS, Replay
from billing.transport.outbox import OutboxUnavailable


class Seconds:
    """A monotonic clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Lost:
    """An outbox of which only the generation and the age are asked."""

    def __init__(self) -> None:
        self.name = "first"
        self.oldest: int | None = None
        self.away = False

    def generation(self) -> str:
        if self.away:
            raise OutboxUnavailable
        return self.name

    def oldest_ms(self) -> int | None:
        return self.oldest


class Node:
    """A node's replay with everything it touches."""

    def __init__(self, directory: Path, clock: ManualClock) -> None:
        self.seconds = Seconds()
        self.outbox = Lost()
        self.publisher = RecordingPublisher()
        self.journal = Journal(directory, clock=clock)
        self.clock = clock
        self.restart()

    def restart(self) -> None:
        self.replay = Replay(
            self.outbox,  # type: ignore[arg-type]  # what is asked of it is there
            self.publisher,
            self.journal,
            clock=self.clock,
            batch=2,
            monotonic=self.seconds,
        )

    def check_after(self, seconds: float) -> int:
        self.seconds.now += seconds
        return self.replay.check()

    def append(self, count: int = 1) -> list[UsageEvent]:
        sent = [make_event() for _ in range(count)]
        self.journal.append(sent)
        return sent


@pytest.fixture
def node(tmp_path: Path, clock: ManualClock) -> Node:
    node = Node(tmp_path, clock)
    assert node.check_after(0) == 0
    return node


def test_while_the_data_stays_nothing_is_published(node: Node):
    node.append(3)
    assert node.check_after(CHECK_SECONDS) == 0
    node.restart()
    assert node.check_after(CHECK_SECONDS) == 0
    assert node.publisher.got == []


def test_the_outbox_is_not_asked_more_often_than_needed(node: Node):
    node.outbox.away = True
    assert node.check_after(CHECK_SECONDS / 2) == 0
    with pytest.raises(OutboxUnavailable):
        node.check_after(CHECK_SECONDS)


def test_a_new_generation_has_the_whole_journal_published_at_once(node: Node):
    sent = node.append(5)
    node.outbox.name = "second"
    assert node.check_after(CHECK_SECONDS) == 5
    assert node.publisher.got == sent
    assert node.publisher.largest == 2


def test_a_line_written_after_the_loss_was_seen_is_published_by_the_second_pass(node: Node):
    node.append(1)
    node.outbox.name = "second"
    node.check_after(CHECK_SECONDS)
    (late,) = node.append(1)
    assert node.check_after(CHECK_SECONDS) == 0
    assert node.check_after(AGAIN_SECONDS) == 2
    assert late in node.publisher.got
    assert node.check_after(AGAIN_SECONDS) == 0


def test_a_loss_while_no_relay_ran_is_noticed_by_the_next(node: Node):
    sent = node.append(2)
    node.outbox.name = "second"
    node.restart()
    node.check_after(CHECK_SECONDS)
    assert node.publisher.got == sent


def test_a_relay_that_dies_between_the_passes_leaves_both_to_the_next(node: Node):
    node.append(1)
    node.outbox.name = "second"
    node.check_after(CHECK_SECONDS)
    node.restart()
    assert node.check_after(CHECK_SECONDS) == 1
    assert node.check_after(AGAIN_SECONDS) == 1
    assert node.check_after(AGAIN_SECONDS) == 0


def test_a_second_loss_between_the_passes_begins_again(node: Node):
    node.append(1)
    node.outbox.name = "second"
    node.check_after(CHECK_SECONDS)
    node.outbox.name = "third"
    assert node.check_after(CHECK_SECONDS) == 1
    assert node.check_after(AGAIN_SECONDS / 2) == 0
    assert node.check_after(AGAIN_SECONDS) == 1


def test_a_failed_publish_is_begun_again(node: Node):
    node.append(3)
    node.outbox.name = "second"
    node.publisher.failing = True
    with pytest.raises(PublishFailed):
        node.check_after(CHECK_SECONDS)
    node.publisher.failing = False
    assert node.check_after(CHECK_SECONDS) == 3


def test_a_node_without_a_journal_has_nothing_to_publish(tmp_path: Path, clock: ManualClock):
    node = Node(tmp_path / "never made", clock)
    assert node.check_after(0) == 0
    node.append(1)
    assert node.check_after(AGAIN_SECONDS) == 0
    assert node.publisher.got == []


def test_the_journal_is_kept_for_five_minutes(node: Node):
    node.append(1)
    node.clock.advance(timedelta(minutes=5, seconds=59))
    assert node.replay.prune() == 0
    node.clock.advance(timedelta(seconds=2))
    assert node.replay.prune() == 1


def test_the_journal_is_kept_as_long_as_the_outbox_has_something_as_old(node: Node):
    node.append(1)
    node.outbox.oldest = int(node.clock.now().timestamp() * 1000)
    node.clock.advance(timedelta(hours=5))
    assert node.replay.prune() == 0
    node.outbox.oldest = int(node.clock.now().timestamp() * 1000)
    assert node.replay.prune() == 1


def test_the_journal_is_not_pruned_while_a_loss_is_not_made_good(node: Node):
    node.append(1)
    node.clock.advance(timedelta(hours=5))
    node.outbox.name = "second"
    assert node.replay.prune() == 0
    node.check_after(CHECK_SECONDS)
    assert node.replay.prune() == 0
    node.check_after(AGAIN_SECONDS)
    assert node.replay.prune() == 1


def test_after_a_flush_of_a_real_redis_everything_settled_is_published(
    private_store: Store, tmp_path: Path
):
    journal = Journal(tmp_path, clock=SystemClock())
    publisher = RecordingPublisher()
    seconds = Seconds()
    replay = Replay(
        private_store.outbox, publisher, journal, clock=SystemClock(), batch=10, monotonic=seconds
    )
    replay.check()
    sent = [make_event(customer=f"c{n}") for n in range(25)]
    for event in sent:
        private_store.put(event)
    journal.append(sent)

    private_store.client.flushall()
    seconds.now += CHECK_SECONDS
    assert replay.check() == 25
    assert {event.id for event in publisher.got} == {event.id for event in sent}
    seconds.now += AGAIN_SECONDS
    replay.check()
    seconds.now += AGAIN_SECONDS
    assert replay.check() == 0
