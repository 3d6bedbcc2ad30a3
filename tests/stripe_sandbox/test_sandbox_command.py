"""``billing stripe-sandbox``, started as a program, asked and ended."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import stripe
from support import eventually
from typer.testing import CliRunner

from billing.cli.main import app
from billing.devtools.stripe_sandbox.server import bind, is_loopback, url_of
from billing.providers.stripe.api_key import check_key

COMMAND = [sys.executable, "-m", "billing.cli", "stripe-sandbox"]

pytestmark = pytest.mark.process


class Running:
    """The command, and what it has printed so far."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.stdout, self.stderr = self.process.stdout, self.process.stderr
        self.lines: list[str] = []

    def settings(self) -> dict[str, str]:
        """The settings it prints; waits until they are there."""
        found: dict[str, str] = {}
        while "STRIPE_WEBHOOK_SECRET" not in found:
            line = self.stdout.readline()
            assert line, self.stderr.read()
            self.lines.append(line)
            if line.strip().startswith("export "):
                name, _, value = line.strip().removeprefix("export ").partition("=")
                found[name] = value
        return found

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        """End it; its exit code and what else it printed."""
        self.process.send_signal(number)
        code = self.process.wait(timeout=60)
        # Not by communicate(), which would miss what readline() has read ahead.
        return code, "".join(self.lines) + self.stdout.read(), self.stderr.read()


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[Running]:
    started = Running(*arguments)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.wait(timeout=60)
        started.stdout.close()
        started.stderr.close()


def client_of(settings: dict[str, str]) -> stripe.StripeClient:
    return stripe.StripeClient(
        settings["STRIPE_API_KEY"],
        base_addresses={"api": settings["STRIPE_API_BASE"]},
        http_client=stripe.RequestsClient(timeout=10),
    )


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["stripe-sandbox", *arguments])
    assert (result.exit_code, result.stdout) == (1, "")
    return " ".join(result.stderr.split())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_how_to_use_it_serves_and_ends_in_order(number: signal.Signals):
    with running("--port", "0") as sandbox:
        settings = sandbox.settings()
        url = settings["STRIPE_API_BASE"]
        check_key(settings["STRIPE_API_KEY"], live=False, base=url)
        assert client_of(settings).v1.customers.create({"name": "Acme"}).name == "Acme"
        assert httpx.get(f"{url}/_sandbox/state", trust_env=False).json()["customers"] == 1
        code, stdout, stderr = sandbox.end(number)
    assert (code, stderr) == (0, "")
    assert f"{url}/_sandbox" in stdout
    assert "without a key" in stdout


def test_webhooks_of_both_kinds_are_delivered_with_the_secret_that_was_printed(inbox: Any):
    with running("--port", "0", "--quiet", "--webhook", inbox.url) as sandbox:
        settings = sandbox.settings()
        assert [line.partition("=")[0] for line in sandbox.lines] == [
            "export STRIPE_API_KEY",
            "export STRIPE_API_BASE",
            "export STRIPE_WEBHOOK_SECRET",
        ]
        client, secret = client_of(settings), settings["STRIPE_WEBHOOK_SECRET"]
        customer = client.v1.customers.create({"name": "Acme"}).id
        eventually(lambda: len(inbox.received) == 1, message="the snapshot")
        assert client.construct_event(*inbox.received[0], secret).type == "customer.created"
        httpx.post(f"{settings['STRIPE_API_BASE']}/_sandbox/reset", trust_env=False)
        payload = {"stripe_customer_id": customer, "value": "1"}
        client.v1.billing.meter_events.create({"event_name": "none", "payload": payload})
        eventually(lambda: len(inbox.received) == 2, message="the thin event")
        notification = client.parse_event_notification(*inbox.received[1], secret)
        assert notification.type == "v1.billing.meter.no_meter_found"
        assert sandbox.end()[0] == 0


def test_the_secret_may_be_given(inbox: Any):
    with running(
        "--port", "0", "--webhook", inbox.url, "--webhook-secret", "whsec_mine"
    ) as sandbox:
        settings = sandbox.settings()
        assert settings["STRIPE_WEBHOOK_SECRET"] == "whsec_mine"
        client_of(settings).v1.customers.create({})
        eventually(lambda: inbox.received)
        client_of(settings).construct_event(*inbox.received[0], "whsec_mine")


def test_others_may_reach_it_only_where_that_was_asked_for():
    message = refused("--host", "0.0.0.0", "--port", "0")
    assert "the control API asks for no key" in message
    assert "--allow-network" in message
    with running("--host", "0.0.0.0", "--port", "0", "--allow-network") as sandbox:
        url = sandbox.settings()["STRIPE_API_BASE"]
        assert url.startswith("http://127.0.0.1:")
        assert httpx.get(f"{url}/_sandbox/state", trust_env=False).status_code == 200
        code, _, stderr = sandbox.end()
    assert code == 0
    assert "without a key" in stderr


def test_a_port_in_use_is_said():
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        taken.listen()
        message = refused("--port", str(port))
    assert f"{port} on 127.0.0.1 is in use" in message
    assert "--port 0" in message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "no-such-host.invalid"], "there is no host 'no-such-host.invalid'"),
        (["--webhook", "127.0.0.1:8000/hook"], "is not an address"),
        (["--webhook", "http://"], "is not an address"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(arguments: list[str], said: str):
    assert said in refused(*arguments)


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.1", False),
    ],
)
def test_loopback_is_told_by_the_address(host: str, alone: bool):
    assert is_loopback(host) is alone


def test_a_url_is_one_that_this_machine_can_use():
    with bind("0.0.0.0", 0) as everywhere:
        assert url_of(everywhere) == f"http://127.0.0.1:{everywhere.getsockname()[1]}"
    if socket.has_ipv6:
        with contextlib.suppress(OSError), bind("::1", 0) as six:
            assert url_of(six) == f"http://[::1]:{six.getsockname()[1]}"
