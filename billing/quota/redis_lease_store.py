"""Leases on Redis or Valkey: the two verbs that ``RedisQuotaStore`` has beside those of holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import redis
from redis.commands.core import Script

from billing.core.credit_lease import (
    ENDED_SECONDS,
    SHARE,
    BatchSettlement,
    LeasedBatch,
    LeaseGrant,
    LeaseOutcome,
    LeaseRequest,
    RunFigures,
    check_lease,
)
from billing.core.errors import QuotaUnavailable, WeighbridgeError
from billing.core.reservation import LineFigures
from billing.quota.checks import check_batch
from billing.redis.keys import RedisKeys, shard_of
from billing.redis.scripts import MILLISECONDS, answering, script_text, text

LEASE_VERBS: Final = ("lease", "settle_leased")
_MINUTE_MS: Final = 60_000


class RedisLeaseStore:
    """Leases of every customer.

    Args:
        client: As of ``RedisQuotaStore``.
        keys: The names of the keys.
        remember_ms: How long a settled task is known as one.
    """

    def __init__(self, client: redis.Redis, keys: RedisKeys, *, remember_ms: int) -> None:
        self._client = client
        self._keys = keys
        self._remember_ms = remember_ms
        self._lease: Script = client.register_script(script_text("lease"))
        self._settle: Script = client.register_script(script_text("settle_leased"))

    def lease(self, request: LeaseRequest) -> LeaseGrant:
        """Make the lease what is requested. See ``LeaseStore.lease``."""
        check_lease(request)
        customer = request.customer
        keys = [
            self._keys.account(customer),
            self._keys.hold(customer, request.lease_id),
            self._keys.open(shard_of(customer)),
            self._keys.customer_holds(customer),
        ]
        arguments: list[str | int | bytes] = [
            customer,
            request.lease_id,
            request.sku,
            request.number,
            request.keep_microcredits,
            request.wish_microcredits,
            request.least_microcredits,
            request.ttl_seconds * MILLISECONDS,
            ENDED_SECONDS * MILLISECONDS,
            SHARE,
        ]
        with answering():
            outcome, granted = self._lease(keys=keys, args=arguments)
        return LeaseGrant(outcome=LeaseOutcome(text(outcome)), granted_microcredits=int(granted))

    def settle(self, batches: Sequence[LeasedBatch]) -> list[BatchSettlement | WeighbridgeError]:
        """Charge runs of leases, in one round trip. See ``LeaseStore.settle_leased``."""
        for batch in batches:
            check_batch(batch)
        with answering(), self._client.pipeline(transaction=False) as pipeline:
            for batch in batches:
                keys, arguments = self._keys_and_arguments(batch)
                self._settle(keys=keys, args=arguments, client=pipeline)
            replies = pipeline.execute(raise_on_error=False)
        return [_settlement(batch, reply) for batch, reply in zip(batches, replies, strict=True)]

    def _keys_and_arguments(self, batch: LeasedBatch) -> tuple[list[str], list[str | int | bytes]]:
        customer = batch.customer
        keys = [
            self._keys.account(customer),
            self._keys.hold(customer, batch.lease_id),
            self._keys.customer_holds(customer),
            self._keys.out(shard_of(customer)),
        ]
        places: dict[str, int] = {}
        arguments: list[str | int | bytes] = [batch.lease_id, self._remember_ms]
        for run in batch.runs:
            mark = run.events[0].id
            key = done_key(self._keys, customer, mark)
            place = places.setdefault(key, len(keys) + len(places) + 1)
            arguments += [place, mark.bytes, run.promised_microcredits, len(run.events)]
            for event, wire in zip(run.events, run.encoded, strict=True):
                arguments += [event.sku, event.amount_microcredits, _metered_ms(event.id), wire]
        return [*keys, *places], arguments


def done_key(keys: RedisKeys, customer: str, mark: UUID) -> str:
    """Where the mark of a settled task is: by the minute it was metered in, which its id tells."""
    return keys.done(customer, _metered_ms(mark) // _MINUTE_MS)


def _metered_ms(identifier: UUID) -> int:
    """The instant in an event's id; as ``core.ids.instant_of`` has it."""
    return identifier.int >> 80


def _settlement(batch: LeasedBatch, reply: Any) -> BatchSettlement | WeighbridgeError:  # noqa: ANN401 - as Redis answers
    if isinstance(reply, Exception):
        try:
            with answering():
                raise reply
        except QuotaUnavailable as error:
            return error
        except redis.exceptions.RedisError as error:
            return WeighbridgeError(f"the quota store refused a batch of a lease: {error}")
    epoch, *figures = (int(part) for part in reply)
    replies = iter(figures)
    runs = []
    for run in batch.runs:
        repeat, lines = next(replies), next(replies)
        runs.append(
            RunFigures(
                repeat=bool(repeat),
                lines=tuple(
                    LineFigures(
                        line=event.line,
                        amount_microcredits=next(replies),
                        shortfall_microcredits=next(replies),
                    )
                    for event in run.events[:lines]
                ),
            )
        )
    return BatchSettlement(runs=tuple(runs), quota_epoch=epoch)
