"""Every way in which Redis cannot answer is one error, whoever asks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis
from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)

from billing.core.errors import QuotaUnavailable
from billing.core.reservation import HoldRequest
from billing.quota.hold_repair import HoldRepair
from billing.quota.redis_store import RedisQuotaStore
from billing.redis.keys import RedisKeys

AWAY = [
    redis.ConnectionError("refused"),
    redis.TimeoutError("too late"),
    ReadOnlyError("You can't write against a read only replica."),
    OutOfMemoryError("command not allowed when used memory > 'maxmemory'"),
    MasterDownError("Link with MASTER is down"),
    ClusterDownError("The cluster is down"),
    TryAgainError("Multiple keys request during rehashing of slot"),
    redis.ResponseError("MISCONF Redis is configured to save RDB snapshots"),
    redis.ResponseError("NOREPLICAS Not enough good replicas to write."),
    redis.ResponseError("LOADING Redis is loading the dataset in memory"),
]


class Refusing(redis.Redis):
    """A server whose every answer is one error."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def execute_command(self, *_: object, **__: object) -> object:
        raise self.error


def _repair(client: redis.Redis) -> object:
    return HoldRepair(client, RedisKeys("wb")).repair("acme")


def _reserve(client: redis.Redis) -> object:
    store = RedisQuotaStore(client, prefix="wb", hold_record_ttl_seconds=1, quarantine_seconds=0)
    return store.reserve(
        HoldRequest(task_id="t1", customer="acme", sku="page", amount_microcredits=1, ttl_seconds=1)
    )


@pytest.mark.parametrize("ask", [_repair, _reserve])
@pytest.mark.parametrize("error", AWAY, ids=lambda error: str(error)[:20])
def test_a_redis_that_cannot_answer_is_unavailable(
    ask: Callable[[redis.Redis], object], error: Exception
) -> None:
    with pytest.raises(QuotaUnavailable):
        ask(Refusing(error))


@pytest.mark.parametrize("ask", [_repair, _reserve])
def test_a_wrong_question_is_not(ask: Callable[[redis.Redis], object]) -> None:
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        ask(Refusing(redis.ResponseError("WRONGTYPE Operation against a key")))
