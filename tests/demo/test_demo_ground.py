from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from amqp import Connection, NotFound
from kombu.utils.url import url_to_parts

from billing.devtools.embedded_servers import LocalServers
from billing.settings import Settings
from billing.transport.topology import declare
from lab.demo.ground import Ground

SERVER_FIELDS = ("database_url", "redis_url", "amqp_url", "result_url")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in SERVER_FIELDS:
        for name in (field.upper(), f"WEIGHBRIDGE_{field.upper()}"):
            monkeypatch.delenv(name, raising=False)


class SomebodysServers(LocalServers):
    """Starts nothing; gives the URLs of the session's servers where none are set."""

    def __init__(self, folder: Path, **urls: str) -> None:
        super().__init__(folder)
        self.urls = urls

    def postgres(self) -> str:
        return self.urls["database_url"]

    def valkey(self) -> str:
        return self.urls["redis_url"]

    def rabbitmq(self) -> str:
        return self.urls["amqp_url"]


@pytest.fixture
def urls(postgres_url: str, redis_url: str, rabbitmq_url: str) -> dict[str, str]:
    return {"database_url": postgres_url, "redis_url": redis_url, "amqp_url": rabbitmq_url}


@pytest.fixture
def given(tmp_path: Path, urls: dict[str, str]) -> Ground:
    """Every server is somebody's."""
    return Ground(tmp_path, Settings(**urls), SomebodysServers(tmp_path, **urls))  # type: ignore[arg-type]  # URLs by name


@pytest.fixture
def unset(tmp_path: Path, urls: dict[str, str]) -> Ground:
    """No server is named; the broker is one that was found running."""
    return Ground(tmp_path, Settings(), SomebodysServers(tmp_path, **urls))


def settings_of(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What the demo's processes read."""
    for name, value in ground.environment().items():
        monkeypatch.setenv(name, value)
    return Settings()


def databases(postgres_url: str) -> set[str]:
    with psycopg.connect(postgres_url) as connection:
        return {name for (name,) in connection.execute("SELECT datname FROM pg_database")}


def database_of(settings: Settings) -> str:
    assert settings.database_url is not None
    return urlsplit(settings.database_url.get_secret_value()).path.removeprefix("/")


@pytest.fixture
def amqp(rabbitmq_url: str) -> Iterator[Connection]:
    _, host, port, user, password, path, _ = url_to_parts(rabbitmq_url)
    with Connection(
        host=f"{host}:{port}", userid=user, password=password, virtual_host=path or "/"
    ) as connection:
        yield connection


def exists(connection: Connection, queue: str) -> bool:
    try:
        connection.channel().queue_declare(queue, passive=True)
    except NotFound:
        return False
    return True


def test_on_somebodys_postgresql_the_demo_makes_a_database_and_drops_it(
    given: Ground, postgres_url: str, monkeypatch: pytest.MonkeyPatch
):
    before = databases(postgres_url)
    given.start()
    settings = settings_of(given, monkeypatch)
    made = database_of(settings)
    assert made.startswith("weighbridge_demo_")
    assert databases(postgres_url) - before >= {made}
    assert not given.keeps_data
    assert given.clear_away(settings, []) == []
    assert made not in databases(postgres_url)


def test_on_somebodys_redis_only_the_demos_keys_are_deleted(
    given: Ground, redis_url: str, monkeypatch: pytest.MonkeyPatch
):
    given.start()
    settings = settings_of(given, monkeypatch)
    others = f"wbtest.{secrets.token_hex(4)}:kept"
    with redis.Redis.from_url(redis_url) as client:
        try:
            client.set(others, "theirs")
            client.set(f"{settings.redis_prefix}:{{s07}}:acct:atlas", "ours")
            assert given.clear_away(settings, []) == []
            assert client.get(others) == b"theirs"
            assert list(client.scan_iter(match=f"{settings.redis_prefix}*")) == []
        finally:
            client.unlink(others)


def test_the_results_of_the_demos_tasks_are_deleted_and_no_others(
    given: Ground, monkeypatch: pytest.MonkeyPatch
):
    result_url = given.start().result_url
    settings = settings_of(given, monkeypatch)
    ours, theirs = (f"celery-task-meta-{secrets.token_hex(8)}" for _ in range(2))
    group = f"celery-taskset-meta-{secrets.token_hex(8)}"
    with redis.Redis.from_url(result_url) as client:
        try:
            for key in (ours, theirs, group, f"{group}.j"):
                client.set(key, "{}")
            assert given.clear_away(settings, [ours, f"{group}*"]) == []
            kept = [client.exists(key) for key in (ours, theirs, group, f"{group}.j")]
            assert kept == [0, 1, 0, 0]
        finally:
            client.unlink(theirs)


def test_on_somebodys_broker_the_demos_queues_and_exchanges_are_deleted(
    given: Ground, amqp: Connection, monkeypatch: pytest.MonkeyPatch
):
    given.start()
    settings = settings_of(given, monkeypatch)
    declare(amqp.channel(), exchange=settings.usage_exchange, queue=settings.usage_queue)
    names = [settings.usage_queue, f"{settings.usage_queue}.dead"]
    assert settings.usage_queue.startswith("weighbridge_demo_")
    assert [exists(amqp, name) for name in names] == [True, True]
    assert given.clear_away(settings, []) == []
    assert [exists(amqp, name) for name in names] == [False, False]


def test_the_names_differ_from_demo_to_demo(tmp_path: Path):
    servers = SomebodysServers(tmp_path)
    grounds = [Ground(tmp_path, Settings(), servers) for _ in range(2)]
    assert grounds[0].node_name != grounds[1].node_name


def test_on_its_own_servers_the_demo_uses_the_usual_names_and_keeps_its_data(
    unset: Ground, redis_url: str, monkeypatch: pytest.MonkeyPatch
):
    unset.start()
    settings = settings_of(unset, monkeypatch)
    assert settings.redis_prefix == "wb"
    assert unset.keeps_data
    key = f"wb:{secrets.token_hex(8)}"
    with redis.Redis.from_url(redis_url) as client:
        try:
            client.set(key, "kept")
            assert unset.clear_away(settings, []) == []
            assert client.exists(key)
        finally:
            client.unlink(key)


def test_a_broker_that_was_found_running_is_somebodys(
    unset: Ground, monkeypatch: pytest.MonkeyPatch
):
    unset.start()
    assert not unset.own_broker
    assert settings_of(unset, monkeypatch).task_queue.startswith("weighbridge_demo_")


def test_valkey_in_rabbitmqs_place_is_the_demos_own(tmp_path: Path, urls: dict[str, str]):
    servers = SomebodysServers(tmp_path, **{**urls, "amqp_url": urls["redis_url"]})
    ground = Ground(tmp_path, Settings(), servers)
    ground.start()
    assert ground.own_broker
    assert ground.environment()["WEIGHBRIDGE_USAGE_QUEUE"] == "usage.log"
    assert "Kombu over Valkey (own)" in ground.told()


def test_no_password_is_shown(tmp_path: Path, urls: dict[str, str]):
    settings = Settings(amqp_url="amqp://ann:secret@broker.example:5672//")  # type: ignore[arg-type]  # a URL
    ground = Ground(tmp_path, settings, SomebodysServers(tmp_path, **urls))
    ground.start()
    assert "RabbitMQ broker.example:5672" in ground.told()
    assert "secret" not in ground.told()


def test_a_fail_point_armed_in_the_environment_does_not_reach_the_demo(
    unset: Ground, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WEIGHBRIDGE_FAILPOINTS", "settle.after=1")
    unset.start()
    assert settings_of(unset, monkeypatch).failpoints == ""


def test_what_could_not_be_deleted_is_told_and_the_rest_is_deleted(
    given: Ground, postgres_url: str, monkeypatch: pytest.MonkeyPatch
):
    given.start()
    settings = settings_of(given, monkeypatch)

    def refuse(_: str, keys: Iterable[str]) -> None:
        if list(keys) == [f"{settings.redis_prefix}:*"]:
            raise redis.ConnectionError("gone")

    monkeypatch.setattr("lab.demo.ground.delete_keys", refuse)
    left = given.clear_away(settings, [])
    assert left == [f"Redis keys {settings.redis_prefix}:*: gone"]
    assert database_of(settings) not in databases(postgres_url)


def test_nothing_is_deleted_where_nothing_was_started(given: Ground):
    assert given.clear_away(Settings(), ["celery-task-meta-x"]) == []
    with pytest.raises(RuntimeError, match="start"):
        _ = given.endpoints
