"""When the books are checked out of turn."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from support import NOW

from billing.core.clock import ManualClock
from billing.reconciliation.redis_restart_watch import CHECK_FOR, RedisRestartWatch


class Node:
    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock(NOW)
        self.life = "marker:run-1"
        self.file = folder / "books" / "generation"

    def asks(self, *, seconds: float = 20) -> bool:
        """Whether a check is due, for a process that has just begun."""
        self.clock.advance(timedelta(seconds=seconds))
        return RedisRestartWatch(lambda: self.life, self.file, self.clock).is_due()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_node_that_never_asked_and_a_redis_that_stays_are_no_reason(node: Node):
    assert [node.asks() for _ in range(3)] == [False, False, False]


def test_another_life_is_a_reason_for_a_while_and_once(node: Node):
    node.asks()
    node.life = "marker:run-2"
    assert [node.asks() for _ in range(7)] == [True] * 5 + [False] * 2
    node.life = "other:run-2"
    assert node.asks()


def test_the_while_ends_however_late_it_is_asked_again(node: Node):
    node.asks()
    node.life = "marker:run-2"
    assert node.asks()
    assert not node.asks(seconds=CHECK_FOR.total_seconds())


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"yesterday marker:run-1", b"marker:run-1"])
def test_what_cannot_be_read_is_written_anew(node: Node, content: bytes):
    node.file.parent.mkdir()
    node.file.write_bytes(content)
    assert not node.asks()
    node.life = "marker:run-2"
    assert node.asks()
