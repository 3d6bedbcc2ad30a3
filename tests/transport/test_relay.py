"""The relay on real servers: at least once, gone from the outbox only when confirmed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from kombu.utils.url import parse_url
from structlog.testing import capture_logs
from support import TcpProxy, eventually, make_event
from usage_support import Broker, RecordingPublisher, Store

from billing.core.clock import Clock, SystemClock
from billing.core.errors import PublishFailed
from billing.core.usage_event import UsageEvent
from billing.transport import topology
from billing.transport.journal import Journal
from billing.transport.outbox import OutboxUnavailable, RedisOutbox
from billing.transport.publishers import Publisher
from billing.transport.relay import Relay


def relay_of(
    store: Store,
    publisher: Publisher,
    directory: Path,
    *,
    owner: str = "relay",
    batch: int = 100,
    clock: Clock | None = None,
) -> Relay:
    clock = clock or SystemClock()
    return Relay(
        store.outbox,
        publisher,
        Journal(directory / "journal", clock=clock),
        Journal(directory / "spool", clock=clock, fsync=True),
        owner=owner,
        batch=batch,
        clock=clock,
    )


def put(store: Store, count: int) -> set[str]:
    sent = [make_event(customer=f"c{number % 90}") for number in range(count)]
    for event in sent:
        store.put(event)
    return {event.task_id for event in sent}


@contextmanager
def running(relay: Relay) -> Iterator[threading.Event]:
    stop = threading.Event()
    thread = threading.Thread(target=relay.run, args=[stop])
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()


def test_what_is_in_the_outbox_goes_to_the_queue(broker: Broker, store: Store, tmp_path: Path):
    sent = put(store, 250)
    relay = relay_of(store, broker.publisher(), tmp_path)
    confirmed = 0
    while now_confirmed := relay.run_once():
        confirmed += now_confirmed
    assert confirmed == 250
    assert store.outbox.length() == 0
    arrived = broker.take()
    assert {event.task_id for event in arrived} == sent
    assert len(arrived) == 250


def test_an_unroutable_batch_stays_in_the_outbox_until_the_binding_is_back(
    broker: Broker, store: Store, tmp_path: Path
):
    relay = relay_of(store, broker.publisher(), tmp_path)
    put(store, 1)
    relay.run_once()
    broker.channel.queue_unbind(broker.queue, broker.exchange, topology.BINDING)
    put(store, 5)
    with pytest.raises(PublishFailed, match="route"):
        relay.run_once()
    assert store.outbox.length() == 5
    assert relay.run_once() == 5
    assert store.outbox.length() == 0


def test_a_refused_batch_stays_in_the_outbox(broker: Broker, store: Store, tmp_path: Path):
    relay = relay_of(store, broker.publisher(), tmp_path)
    broker.declare()
    full = f"{broker.queue}.full"
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    broker.channel.queue_declare(
        full, durable=False, auto_delete=False, exclusive=True, arguments=arguments
    )
    broker.channel.queue_bind(full, broker.exchange, topology.BINDING)
    put(store, 10)
    with pytest.raises(PublishFailed, match="refused"):
        relay.run_once()
    assert store.outbox.length() == 10


def test_a_relay_goes_on_when_rabbitmq_is_back(broker: Broker, store: Store, tmp_path: Path):
    with TcpProxy(broker.host, broker.port) as proxy, capture_logs() as logs:
        publisher = broker.publisher(port=proxy.port, timeout_seconds=1)
        relay = relay_of(store, publisher, tmp_path)
        sent = put(store, 10)
        with running(relay):
            eventually(lambda: store.outbox.length() == 0)
            proxy.cut()
            sent |= put(store, 10)
            eventually(lambda: any(log["event"] == "relay_cannot_publish" for log in logs))
            assert store.outbox.length() == 10
            proxy.restore()
            eventually(lambda: store.outbox.length() == 0)
            eventually(lambda: any(log["event"] == "relay_recovered" for log in logs))
        assert {event.task_id for event in broker.take()} == sent
    told = [log["event"] for log in logs]
    assert told == ["relay_cannot_publish", "relay_recovered"], "once per change, not per attempt"
    assert {"error", "money", "remedy"} <= logs[0].keys()


def test_a_relay_goes_on_when_redis_is_back(broker: Broker, store: Store, tmp_path: Path):
    parts = parse_url(str(connection_url(store.client)))
    with TcpProxy(parts["hostname"], parts["port"]) as proxy, capture_logs() as logs:
        options = store.client.connection_pool.connection_kwargs
        client = redis.Redis(
            port=proxy.port,
            db=options.get("db", 0),
            password=options.get("password"),
            socket_timeout=0.3,
            retry=None,
        )
        behind = Store(client, store.keys)
        sent = put(store, 5)
        with running(relay_of(behind, broker.publisher(), tmp_path)):
            eventually(lambda: store.outbox.length() == 0)
            proxy.cut()
            sent |= put(store, 5)
            eventually(lambda: any(log["event"] == "relay_cannot_read_outbox" for log in logs))
            proxy.restore()
            eventually(lambda: store.outbox.length() == 0)
        client.close()
    assert {event.task_id for event in broker.take()} == sent


def test_the_spool_is_drained_although_redis_is_away(tmp_path: Path, store: Store):
    client = redis.Redis(port=1, socket_timeout=0.2, retry=None)
    publisher = RecordingPublisher()
    relay = relay_of(Store(client, store.keys), publisher, tmp_path)
    (event,) = [make_event()]
    Journal(tmp_path / "spool", clock=SystemClock(), fsync=True).append([event])
    with pytest.raises(OutboxUnavailable):
        relay.run_once()
    assert publisher.got == [event]


def test_a_disk_that_fails_does_not_stop_the_outbox(tmp_path: Path, store: Store):
    publisher = RecordingPublisher()
    relay = relay_of(store, publisher, tmp_path)
    (tmp_path / "spool" / "1-1-a.jsonl").mkdir(parents=True)
    sent = put(store, 3)
    with capture_logs() as logs:
        relay.run_once()
        relay.run_once()
    assert publisher.task_ids == sent
    assert [log["event"] for log in logs] == ["relay_cannot_use_disk"]


def test_an_unexpected_error_is_logged_with_its_traceback_and_does_not_end_the_relay(
    tmp_path: Path, store: Store
):
    class Broken(RecordingPublisher):
        def publish(self, events: Sequence[UsageEvent]) -> None:
            if not self.failing:
                self.failing = True
                raise ZeroDivisionError("as no publisher would")
            self.failing = False
            super().publish(events)
            self.failing = True

    publisher = Broken()
    sent = put(store, 3)
    with capture_logs() as logs, running(relay_of(store, publisher, tmp_path)):
        eventually(lambda: publisher.task_ids == sent)
    assert logs[0]["event"] == "relay_failed"
    assert isinstance(logs[0]["exc_info"], ZeroDivisionError)
    assert publisher.closed


def test_a_relay_stops_within_a_second_although_rabbitmq_is_silent(
    broker: Broker, store: Store, tmp_path: Path
):
    with TcpProxy(broker.host, broker.port) as proxy:
        stop = threading.Event()
        publisher = broker.publisher(port=proxy.port, timeout_seconds=60, cancelled=stop.is_set)
        thread = threading.Thread(target=relay_of(store, publisher, tmp_path).run, args=[stop])
        thread.start()
        put(store, 5)
        eventually(lambda: store.outbox.length() == 0)
        proxy.silence()
        put(store, 5)
        publishing = publisher._slots.get().lock
        eventually(publishing.locked)
        started = time.monotonic()
        stop.set()
        thread.join(60)
        assert time.monotonic() - started < 1
        assert store.outbox.length() == 5


def test_a_relay_that_stops_leaves_its_shards_to_the_next_at_once(tmp_path: Path, store: Store):
    first = relay_of(store, RecordingPublisher(), tmp_path, owner="first")
    with running(first):
        eventually(lambda: store.client.get(f"{store.keys.out(63)}:lease") == b"first")
    publisher = RecordingPublisher()
    sent = put(store, 3)
    relay_of(store, publisher, tmp_path, owner="second").run_once()
    assert publisher.task_ids == sent


def test_a_relay_that_cannot_publish_leaves_its_shards_to_others(tmp_path: Path, store: Store):
    unlucky, lucky = RecordingPublisher(), RecordingPublisher()
    unlucky.failing = True
    sent = put(store, 3)
    with (
        running(relay_of(store, unlucky, tmp_path / "a", owner="unlucky")),
        running(relay_of(store, lucky, tmp_path / "b", owner="lucky")),
    ):
        eventually(lambda: lucky.task_ids == sent)
    assert store.outbox.length() == 0


def test_two_relays_at_once_deliver_everything(broker: Broker, store: Store, tmp_path: Path):
    relays = [
        relay_of(store, broker.publisher(), tmp_path / name, owner=name, batch=20)
        for name in ("a", "b")
    ]
    sent = put(store, 100)
    with running(relays[0]), running(relays[1]):
        sent |= put(store, 300)
        eventually(lambda: store.outbox.length() == 0)
    assert {event.task_id for event in broker.take()} == sent


def test_the_lag_tells_what_waits(tmp_path: Path, store: Store):
    relay = relay_of(store, RecordingPublisher(), tmp_path)
    lag = relay.lag()
    assert (lag.outbox_events, lag.oldest_seconds, lag.spool_segments) == (0, 0, 0)
    put(store, 4)
    Journal(tmp_path / "spool", clock=SystemClock()).append([make_event()])
    store.client.xadd(store.keys.out(0), {"e": "x"})
    store.outbox.read([0], 10)
    eventually(lambda: relay.lag().oldest_seconds > 0.05)
    lag = relay.lag()
    assert (lag.outbox_events, lag.spool_segments, lag.unreadable_events) == (4, 1, 1)
    assert lag.oldest_seconds < 60


class RelayProcess:
    """Starts relays as processes of their own, and ends those that are left."""

    def __init__(self, broker: Broker, store: Store, directory: Path, root: Path) -> None:
        self.options = {
            "amqp_url": broker.url,
            "exchange": broker.exchange,
            "queue": broker.queue,
            "redis_url": connection_url(store.client),
            "prefix": store.keys.prefix,
            "spool_dir": str(directory),
            "batch": "20",
        }
        self._root = root
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, owner: str, failpoints: str = "") -> subprocess.Popen[bytes]:
        options = {**self.options, "owner": owner, "failpoints": failpoints}
        script = self._root / "tests" / "transport" / "relay_process.py"
        process = subprocess.Popen(
            [sys.executable, str(script), json.dumps(options)],
            env={**os.environ, "PYTHONPATH": str(self._root)},
        )
        self._started.append(process)
        return process

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.wait(60)


@pytest.fixture
def relays(
    broker: Broker, store: Store, tmp_path: Path, pytestconfig: pytest.Config
) -> Iterator[RelayProcess]:
    processes = RelayProcess(broker, store, tmp_path, pytestconfig.rootpath)
    yield processes
    processes.end()


@pytest.mark.parametrize(
    "failpoint", ["relay.before_publish", "relay.after_publish", "relay.after_confirm"]
)
def test_a_relay_killed_at_any_step_leaves_everything_to_the_next(
    relays: RelayProcess, broker: Broker, store: Store, tmp_path: Path, failpoint: str
):
    broker.declare()
    sent = put(store, 150)
    victim = relays.start("victim", f"{failpoint}=2")
    assert victim.wait(60) == -signal.SIGKILL
    assert (tmp_path / "reached").read_text() == f"{failpoint}\n"
    assert store.outbox.length() > 0

    next_one = relays.start("next")
    # The victim's leases run out first.
    eventually(lambda: store.outbox.length() == 0, timeout=60)
    next_one.terminate()
    assert next_one.wait(60) == 0
    arrived = [event.task_id for event in broker.take()]
    assert set(arrived) == sent
    duplicates = len(arrived) - len(sent)
    assert duplicates == 0 if failpoint == "relay.before_publish" else duplicates > 0


def connection_url(client: redis.Redis) -> str:
    options = client.connection_pool.connection_kwargs
    password = f":{options['password']}@" if options.get("password") else ""
    return f"redis://{password}{options['host']}:{options['port']}/{options.get('db', 0)}"


def test_a_relay_replays_the_journal_after_its_redis_was_flushed(
    broker: Broker, private_store: Store, tmp_path: Path
):
    sent = [make_event(customer=f"c{number}") for number in range(30)]
    journal = Journal(tmp_path / "journal", clock=SystemClock())
    relay = relay_of(private_store, broker.publisher(), tmp_path)
    relay.run_once()
    for event in sent:
        private_store.put(event)
    journal.append(sent)
    private_store.client.flushall()
    with running(relay):
        seen = broker.taken_until(lambda ids: len(ids) == 30)
        assert eventually(seen) == {event.task_id for event in sent}


def test_reading_by_a_relay_that_lost_its_lease_only_repeats(tmp_path: Path, store: Store):
    sent = put(store, 5)
    slow, fast = RecordingPublisher(), RecordingPublisher()
    entries = RedisOutbox(store.client, store.keys).read(range(64), 10)
    relay_of(store, fast, tmp_path).run_once()
    slow.publish([entry.event for entry in entries])
    store.outbox.remove(entries)
    assert slow.task_ids == fast.task_ids == sent
    assert store.outbox.length() == 0
