"""The quota store on Redis (7 or newer) or Valkey (8 or newer): one Lua script per verb."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import redis

from billing.core.clock import to_ms
from billing.core.credit_lease import BatchSettlement, LeasedBatch, LeaseGrant, LeaseRequest
from billing.core.errors import DenialReason, WeighbridgeError
from billing.core.reservation import (
    AccountState,
    AccountView,
    HoldRequest,
    HoldState,
    HoldView,
    LineFigures,
    LoadOutcome,
    ReleaseCause,
    ReleaseOutcome,
    Reservation,
    ReserveOutcome,
    Settlement,
    SettleOutcome,
)
from billing.core.usage_event import UsageEvent
from billing.quota.checks import check_event, check_lines, check_request, check_state
from billing.quota.redis_lease_store import LEASE_VERBS, RedisLeaseStore, done_key
from billing.redis.keys import SHARDS, RedisKeys, shard_of, split_member
from billing.redis.scripts import MILLISECONDS, LuaScripts, answering, text, texts

VERBS: Final = ("reserve", "settle", "release", "append", "expire", "load", *LEASE_VERBS)
_CHUNK: Final = 100
"""Holds expired by one script, or read in one pipeline: leaves the server to others."""


class RedisQuotaStore:
    """``QuotaStore`` on Redis. Each verb is one script on one slot, timed by the server's clock.

    It is a ``LeaseStore`` as well (``redis_lease_store``).

    Args:
        client: With its own time-outs; replies may be bytes or text. Nothing is asked of it here.
        prefix: First part of every key.
        hold_record_ttl_seconds: How long an ended hold is remembered.
        quarantine_seconds: How long an account with usage is not loaded after a loss of data.
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        prefix: str,
        hold_record_ttl_seconds: int,
        quarantine_seconds: int,
    ) -> None:
        self._client = client
        self._keys = RedisKeys(prefix)
        self._remember_ms = hold_record_ttl_seconds * MILLISECONDS
        self._quarantine_ms = quarantine_seconds * MILLISECONDS
        self._scripts = LuaScripts(client, VERBS)
        self._leases = RedisLeaseStore(client, self._keys, remember_ms=self._remember_ms)
        self._sweep_from: int | None = None

    def reserve(self, request: HoldRequest) -> Reservation:
        """Hold the amount for the task, or say why not. See ``QuotaStore.reserve``."""
        check_request(request)
        return _reservation(self._run("reserve", *self._reserving(request)))

    def settle(
        self,
        customer: str,
        task_id: str,
        events: Sequence[UsageEvent],
        *,
        marked: bool = False,
    ) -> Settlement:
        """End the hold and put the events into the outbox. See ``QuotaStore.settle``."""
        check_lines(customer, task_id, events)
        keys = [*self._hold_keys(customer, task_id), self._out(customer)]
        mark = b""
        if marked and events:
            keys.append(done_key(self._keys, customer, events[0].id))
            mark = events[0].id.bytes
        arguments: list[str | int | bytes] = [customer, task_id, self._remember_ms, mark]
        wires = tuple(event.to_wire() for event in events)
        for event, wire in zip(events, wires, strict=True):
            arguments += [event.sku, event.line, event.amount_microcredits]
            arguments += [to_ms(event.metered_at), wire]
        outcome, epoch, *figures = (text(part) for part in self._run("settle", keys, arguments))
        return Settlement(
            outcome=SettleOutcome(outcome),
            lines=tuple(
                LineFigures(
                    line=line, amount_microcredits=int(amount), shortfall_microcredits=int(short)
                )
                for line, amount, short in zip(*[iter(figures)] * 3, strict=True)
            ),
            quota_epoch=int(epoch),
            wires=wires,
        )

    def release(
        self, customer: str, task_id: str, cause: ReleaseCause, event: UsageEvent | None
    ) -> ReleaseOutcome:
        """Give the hold back. See ``QuotaStore.release``."""
        if event is not None:
            check_event(customer, event, free=True)
        reply = self._run(
            "release",
            [*self._hold_keys(customer, task_id), self._out(customer)],
            [
                customer,
                task_id,
                self._remember_ms,
                cause.value,
                int(cause.final),
                event.to_wire() if event is not None else "",
            ],
        )
        return ReleaseOutcome(text(reply))

    def lease(self, request: LeaseRequest) -> LeaseGrant:
        """Make the lease what is requested. See ``LeaseStore.lease``."""
        return self._leases.lease(request)

    def settle_leased(
        self, batches: Sequence[LeasedBatch]
    ) -> list[BatchSettlement | WeighbridgeError]:
        """Charge runs of leases. See ``LeaseStore.settle_leased``."""
        return self._leases.settle(batches)

    def append(self, customer: str, event: UsageEvent) -> None:
        """Put an event of amount 0 into the outbox. See ``QuotaStore.append``."""
        check_event(customer, event, free=True)
        self._run("append", [self._keys.account(customer), self._out(customer)], [event.to_wire()])

    def expire(self, limit: int) -> list[HoldView]:
        """Expire up to ``limit`` holds over time, shard by shard. See ``QuotaStore.expire``.

        Each sweep begins with the shard after the one where the last ended, so that a shard with
        more than ``limit`` of them cannot keep the others waiting.
        """
        with answering():
            seconds, microseconds = self._client.time()
            now_ms = seconds * MILLISECONDS + microseconds // MILLISECONDS
            counts = self._pipeline(
                ("ZCOUNT", self._keys.open(shard), "-inf", now_ms) for shard in range(SHARDS)
            )
        start = now_ms % SHARDS if self._sweep_from is None else self._sweep_from
        expired: list[HoldView] = []
        for shard in [*range(start, SHARDS), *range(start)]:
            if len(expired) >= limit:
                break
            if counts[shard]:
                expired += self._expire_shard(shard, now_ms, limit - len(expired))
            self._sweep_from = (shard + 1) % SHARDS
        return expired

    def load(self, state: AccountState) -> LoadOutcome:
        """Take over what PostgreSQL knows, if it is newer. See ``QuotaStore.load``."""
        check_state(state)
        customer = state.customer
        arguments: list[str | int | bytes] = [
            state.epoch,
            state.version,
            int(state.suspended),
            state.granted_microcredits,
            state.settled_microcredits,
            state.late_microcredits,
            state.period_start_ms,
            state.period_end_ms,
            int(state.had_usage),
            self._quarantine_ms,
            len(state.budgets),
        ]
        for sku, amount in (*state.budgets.items(), *state.spent.items()):
            arguments += [sku, amount]
        keys = [
            self._keys.account(customer),
            self._keys.customer_holds(customer),
            self._keys.born(shard_of(customer)),
        ]
        return LoadOutcome(text(self._run("load", keys, arguments)))

    def account(self, customer: str) -> AccountView | None:
        """The account, or None where the balance is unknown."""
        with answering():
            fields = texts(self._client.hgetall(self._keys.account(customer)))
        return _account_view(customer, fields) if fields else None

    def hold(self, customer: str, task_id: str) -> HoldView | None:
        """The latest admission of a task, as long as it is remembered."""
        with answering():
            fields = texts(self._client.hgetall(self._keys.hold(customer, task_id)))
        return _hold_view(customer, task_id, fields) if fields else None

    def open_holds(self, customer: str | None = None) -> list[HoldView]:
        """Every hold in state ``held``, oldest expiry first. Not one step: a picture in motion."""
        with answering():
            if customer is not None:
                tasks = self._client.hkeys(self._keys.customer_holds(customer))
                names = [(customer, text(task)) for task in tasks]
            else:
                shards = self._pipeline(
                    ("ZRANGE", self._keys.open(shard), 0, -1) for shard in range(SHARDS)
                )
                names = [split_member(text(member)) for members in shards for member in members]
            found: list[HoldView] = []
            for chunk in _chunks(names):
                records = self._pipeline(("HGETALL", self._keys.hold(*name)) for name in chunk)
                found += (
                    _hold_view(*name, texts(record))
                    for name, record in zip(chunk, records, strict=True)
                    if record
                )
        still_open = (hold for hold in found if hold.state is HoldState.HELD)
        return sorted(
            still_open, key=lambda hold: (hold.expires_at_ms, hold.customer, hold.task_id)
        )

    def _expire_shard(self, shard: int, now_ms: int, limit: int) -> list[HoldView]:
        expired: list[HoldView] = []
        while len(expired) < limit:
            asked = min(_CHUNK, limit - len(expired))
            key = self._keys.open(shard)
            with answering():
                (members,) = self._pipeline(
                    [("ZRANGEBYSCORE", key, "-inf", now_ms, "LIMIT", 0, asked)]
                )
            names = [split_member(text(member)) for member in members]
            ended = self._expire_named(shard, names) if names else []
            expired += ended
            # Fewer than asked: the shard is through, or another sweeper is at work in it.
            if len(ended) < asked:
                break
        return expired

    def _expire_named(self, shard: int, names: Iterable[tuple[str, str]]) -> list[HoldView]:
        keys = [self._keys.open(shard)]
        arguments: list[str | int | bytes] = [self._remember_ms]
        for customer, task_id in names:
            account, hold, _, holds = self._hold_keys(customer, task_id)
            keys += [account, hold, holds]
            arguments += [customer, task_id]
        return [
            _hold_view(text(customer), text(task_id), texts(flat))
            for customer, task_id, flat in self._run("expire", keys, arguments)
        ]

    def _reserving(self, request: HoldRequest) -> tuple[list[str], list[str | int | bytes]]:
        keys = self._hold_keys(request.customer, request.task_id)
        arguments: list[str | int | bytes] = [
            request.customer,
            request.task_id,
            request.sku,
            request.amount_microcredits,
            request.ttl_seconds * MILLISECONDS,
        ]
        if request.mark is not None:
            keys.append(done_key(self._keys, request.customer, request.mark))
            arguments.append(request.mark.bytes)
        return keys, arguments

    def _hold_keys(self, customer: str, task_id: str) -> list[str]:
        return [
            self._keys.account(customer),
            self._keys.hold(customer, task_id),
            self._keys.open(shard_of(customer)),
            self._keys.customer_holds(customer),
        ]

    def _out(self, customer: str) -> str:
        return self._keys.out(shard_of(customer))

    def _run(self, verb: str, keys: list[str], arguments: list[str | int | bytes]) -> Any:  # noqa: ANN401 - each verb's reply has a shape of its own
        with answering():
            return self._scripts.run(verb, keys, arguments)

    def _pipeline(self, commands: Iterable[tuple[str | int, ...]]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py types none
        return pipeline.execute()


def _reservation(reply: Sequence[Any]) -> Reservation:
    outcome, reason, admission, held, remaining = (text(part) for part in reply)
    return Reservation(
        outcome=ReserveOutcome(outcome),
        reason=DenialReason(reason) if reason else None,
        admission=int(admission),
        held_microcredits=int(held),
        left_microcredits=int(remaining),
    )


def _chunks(names: list[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    for start in range(0, len(names), _CHUNK):
        yield names[start : start + _CHUNK]


def _amounts(fields: Mapping[str, str], prefix: str) -> dict[str, int]:
    return {
        name.removeprefix(prefix): int(value)
        for name, value in fields.items()
        if name.startswith(prefix)
    }


def _account_view(customer: str, fields: Mapping[str, str]) -> AccountView:
    return AccountView(
        customer=customer,
        epoch=int(fields["epoch"]),
        version=int(fields["version"]),
        suspended=fields["suspended"] == "1",
        granted_microcredits=int(fields["granted"]),
        held_microcredits=int(fields["held"]),
        settled_microcredits=int(fields["settled"]),
        late_microcredits=int(fields["late"]),
        period_start_ms=int(fields["period_start_ms"]),
        period_end_ms=int(fields["period_end_ms"]),
        budgets=_amounts(fields, "limit:"),
        spent={sku: amount for sku, amount in _amounts(fields, "spent:").items() if amount},
        leases=int(fields.get("leases", 0)),
    )


def _hold_view(customer: str, task_id: str, fields: Mapping[str, str]) -> HoldView:
    lines = range(1, int(fields.get("lines", "0")) + 1)
    return HoldView(
        task_id=task_id,
        customer=customer,
        sku=fields["sku"],
        state=HoldState(fields["state"]),
        admission=int(fields["admission"]),
        held_microcredits=int(fields["held"]),
        settled_microcredits=sum(int(fields[f"amount{line}"]) for line in lines),
        cause=fields["cause"],
        expires_at_ms=int(fields["expires_ms"]),
    )
