"""The proxy does to connections what each fault says, and counts what met it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from lab.chaos.proxy import Mode, Proxy


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it is sent."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            while data := connection.recv(1000):
                connection.sendall(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield server.getsockname()[1]
    server.close()


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    with Proxy(echo) as proxy:
        yield proxy


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def answer(connection: socket.socket, word: bytes = b"hello") -> bytes:
    connection.sendall(word)
    return connection.recv(100)


def test_what_is_well_passes_and_is_not_counted(proxy: Proxy):
    with connect(proxy) as connection:
        assert answer(connection) == b"hello"
    assert proxy.heal().connections == 0


def test_half_open_takes_everything_and_gives_nothing_until_it_is_healed(proxy: Proxy):
    with connect(proxy) as connection:
        assert answer(connection) == b"hello"
        proxy.set(Mode.HALF_OPEN)
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            answer(connection)
        connection.settimeout(5)
        met = proxy.heal()
        assert (met.connections, met.data_bytes) == (1, 5)
        # Its two ends could never agree again.
        with pytest.raises(ConnectionResetError):
            connection.recv(100)
    with connect(proxy) as connection:
        assert answer(connection) == b"hello"


def test_cut_closes_what_is_there_and_refuses_what_comes(proxy: Proxy):
    with connect(proxy) as connection:
        assert answer(connection) == b"hello"
        proxy.set(Mode.CUT)
        assert connection.recv(100) == b""
    with connect(proxy) as connection, contextlib.suppress(ConnectionError):
        assert connection.recv(100) == b""
    assert proxy.heal().connections == 2


def test_reset_is_seen_as_such(proxy: Proxy):
    with connect(proxy) as connection:
        assert answer(connection) == b"hello"
        proxy.set(Mode.RESET)
        with pytest.raises(ConnectionResetError):
            answer(connection)
    assert proxy.heal().connections == 1


def test_deaf_loses_what_clients_say_only(proxy: Proxy):
    with connect(proxy) as connection:
        assert answer(connection) == b"hello"
        proxy.set(Mode.DEAF)
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            answer(connection)
        connection.settimeout(5)
    assert proxy.heal().data_bytes == 5


def test_latency_comes_late_and_comes(proxy: Proxy):
    proxy.set(Mode.LATENCY, delay_seconds=0.02)
    with connect(proxy) as connection:
        assert answer(connection) == b"hello"
    met = proxy.heal()
    # Once in each direction.
    assert (met.connections, met.data_bytes) == (1, 10)


def test_a_server_on_another_port_is_found_again(proxy: Proxy, echo: int):
    proxy.target = 1
    with pytest.raises(ConnectionError), connect(proxy) as connection:
        connection.recv(100)
    proxy.target = echo
    with connect(proxy) as connection:
        assert answer(connection) == b"hello"


def test_a_url_keeps_everything_but_its_address(proxy: Proxy):
    assert proxy.url("amqp://me:secret@127.0.0.1:5000//") == (
        f"amqp://me:secret@127.0.0.1:{proxy.port}//"
    )
