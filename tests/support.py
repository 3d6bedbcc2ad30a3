"""What tests of several capabilities share: waiting, valid records, a bad network."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self, TypeVar

import sqlalchemy as sa

from billing.core.credits import parse_credits
from billing.core.event_columns import OF_EVENT
from billing.core.event_ids import event_id
from billing.core.periods import month_of
from billing.core.sku import (
    AdmissionPolicy,
    DenialPolicy,
    FailurePolicy,
    Pricing,
    UnavailablePolicy,
)
from billing.core.usage_event import Outcome, UsageEvent, usage_line
from billing.postgres import schema as tables

_INTO_THE_MONTH: Final = timedelta(days=9, hours=12, minutes=30)
NOW: Final = month_of(datetime.now(UTC) - _INTO_THE_MONTH).start + _INTO_THE_MONTH
"""The instant at which the tests' clock stands still: the last tenth of a month, 12:30.

Never ahead of the servers' own clocks, which say when a hold expires, nor near a month's edge.
"""

LONG_AGO: Final = datetime(2020, 1, 1, tzinfo=UTC)

T = TypeVar("T")


def eventually(
    predicate: Callable[[], T],
    *,
    timeout: float = 30.0,
    message: str = "",
    interval: float = 0.02,
) -> T:
    """Ask until the answer is true; return it.

    Args:
        predicate: The question. An exception counts as "not yet".
        timeout: Seconds until the wait fails.
        message: What was waited for, for the failure.
        interval: Seconds between two questions.

    Raises:
        AssertionError: It was never true; tells the last answer or exception.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            answer = predicate()
            last = repr(answer)
        except Exception as error:  # noqa: BLE001 - whatever it was, it may be over at the next try
            answer, last = None, f"{type(error).__name__}: {error}"
        if answer:
            return answer  # type: ignore[return-value]  # a true answer is never the None above
        if time.monotonic() > deadline:
            what = message or getattr(predicate, "__name__", "the condition")
            raise AssertionError(f"not within {timeout} s: {what}; last answer: {last[:500]}")
        time.sleep(interval)


def make_event(
    *,
    metered_at: datetime = NOW,
    **overrides: Any,
) -> UsageEvent:
    """A valid usage event of customer ``acme``: one ``page-capture`` for one credit.

    Args:
        metered_at: The instant in its id.
        **overrides: Any field; ``id`` follows from ``task_id``, ``line`` and ``metered_at``.
    """
    sku = overrides.get("sku", "page-capture")
    fields: dict[str, Any] = {
        "customer": "acme",
        "sku": sku,
        "line": usage_line(sku),
        "outcome": Outcome.SUCCEEDED,
        "quantity": 1,
        "amount_microcredits": 1_000_000,
        "held_microcredits": 1_000_000,
        "task_id": str(uuid.uuid4()),
        "task_name": "tests.capture",
        "worker": "tests@localhost",
        "started_at": metered_at,
        "finished_at": metered_at + timedelta(milliseconds=250),
    } | overrides
    fields.setdefault("id", event_id(fields["task_id"], fields["line"], metered_at))
    return UsageEvent(**fields)


def add_customer(
    engine: sa.Engine,
    customer: str,
    *,
    credits: int | str = 100,  # noqa: A002 - the word of the field; the builtin is for interactive use
    suspended: bool = False,
    time_zone: str = "UTC",
    budgets: dict[str, int | str] | None = None,
) -> str:
    """Insert a customer with its fence, one grant of ``credits`` (none if 0) and monthly budgets.

    Args:
        engine: Of a migrated database.
        customer: Its id.
        credits: Whole credits, or a decimal string such as ``"0.5"``.
        suspended: Whether its account is suspended.
        time_zone: IANA name.
        budgets: Credits by SKU, ``"*"`` for all of them together.

    Returns:
        The id.
    """
    granted = parse_credits(str(credits))
    status = "suspended" if suspended else "active"
    with engine.begin() as connection:
        connection.execute(
            tables.customers.insert().values(
                id=customer, name=customer, status=status, time_zone=time_zone
            )
        )
        connection.execute(
            tables.quota_fences.insert().values(customer_id=customer, granted_microcredits=granted)
        )
        if granted:
            connection.execute(
                tables.grants.insert().values(
                    customer_id=customer, amount_microcredits=granted, reference="tests"
                )
            )
        for sku, limit in (budgets or {}).items():
            connection.execute(
                tables.budgets.insert().values(
                    customer_id=customer, sku_id=sku, limit_microcredits=parse_credits(str(limit))
                )
            )
    return customer


def add_sku(
    engine: sa.Engine,
    sku: str,
    *,
    price: int | str = 1,
    unit: str = "page",
    pricing: Pricing = Pricing.FIXED,
    hold_quantity: int = 1,
    failure_policy: FailurePolicy = FailurePolicy.RELEASE,
    denial_policy: DenialPolicy = DenialPolicy.FAIL,
    unavailable_policy: UnavailablePolicy = UnavailablePolicy.RETRY,
    allow_limit: int = 0,
    effective_from: datetime = LONG_AGO,
    admission: AdmissionPolicy = AdmissionPolicy.EXACT,
) -> str:
    """Insert a SKU with one price, in credits, in force since ``effective_from``; return its id."""
    with engine.begin() as connection:
        connection.execute(
            tables.skus.insert().values(
                id=sku,
                unit=unit,
                pricing=pricing.value,
                hold_quantity=hold_quantity,
                failure_policy=failure_policy.value,
                denial_policy=denial_policy.value,
                unavailable_policy=unavailable_policy.value,
                allow_limit=allow_limit,
                admission=admission.value,
            )
        )
        connection.execute(
            tables.prices.insert().values(
                sku_id=sku,
                effective_from=effective_from,
                unit_price_microcredits=parse_credits(str(price)),
            )
        )
    return sku


class TcpProxy:
    """A network in between that can be cut, silenced or slowed; on 127.0.0.1.

    ``with TcpProxy("127.0.0.1", 6379) as proxy:`` listens on ``proxy.port``.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.latency_seconds = 0.0
        self._refusing = False
        self._flowing = threading.Event()
        self._flowing.set()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def cut(self) -> None:
        """Close every connection and refuse new ones, until ``restore``."""
        self._refusing = True
        self._drop_all()

    def silence(self) -> None:
        """Keep connections open and pass nothing on (half-open), until ``restore``."""
        self._flowing.clear()

    def restore(self) -> None:
        """Be a good network again."""
        self._refusing = False
        self._flowing.set()

    def close(self) -> None:
        """Stop listening and close every connection."""
        self._refusing = True
        self._listener.close()
        self._drop_all()
        self._flowing.set()

    def _drop_all(self) -> None:
        with self._lock:
            dropped, self._open = self._open, set()
        for end in dropped:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        for client in self._clients():
            if self._refusing:
                client.close()
                continue
            try:
                server = socket.create_connection(self._target, timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            with self._lock:
                self._open |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _clients(self) -> Iterator[socket.socket]:
        while True:
            try:
                yield self._listener.accept()[0]
            except OSError:
                return

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(65_536):
                self._flowing.wait()
                if self.latency_seconds:
                    time.sleep(self.latency_seconds)
                sink.sendall(chunk)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        with self._lock:
            self._open -= {source, sink}


def open_member(customer: str, task_id: str) -> str:
    """A hold's name in Redis's sorted set of open holds."""
    return f"{customer}|{task_id}"


def row_of(event: UsageEvent, fingerprint: bytes) -> dict[str, Any]:
    """The row that an event becomes, but for ``logged_at``."""
    row = {column.name: getattr(event, column.field) for column in OF_EVENT}
    return {**row, "outcome": event.outcome.value, "fingerprint": fingerprint}
