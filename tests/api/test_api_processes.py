"""``billing api`` as a program: killed at the worst moment, and ended in order."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from support import eventually
from webhook_bench import SECRET, WEBHOOK, Shop, signed

from billing.devtools.embedded_servers.launch import free_ports
from billing.settings import Settings

pytestmark = pytest.mark.process


def a_free_port() -> int:
    (port,) = free_ports(1)
    return port


class Program:
    """``billing api`` on a port of its own."""

    def __init__(self, settings: Settings, port: int, **more: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        secrets = ("database_url", "redis_url", "amqp_url", "stripe_api_key")
        environment = {
            name.upper(): getattr(settings, name).get_secret_value() for name in secrets
        } | {
            "STRIPE_API_BASE": settings.stripe_api_base,
            "STRIPE_WEBHOOK_SECRET": SECRET,
            "WEIGHBRIDGE_REDIS_PREFIX": settings.redis_prefix,
            "WEIGHBRIDGE_SPOOL_DIR": str(settings.spool_dir),
            "WEIGHBRIDGE_API_PORT": str(port),
        }
        self._log = Path(settings.spool_dir).parent / "api.log"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "billing.cli", "api"],
                env={**os.environ, **environment, **more},
                stderr=log,
                stdout=subprocess.PIPE,
            )

    def until_up(self) -> None:
        eventually(
            lambda: httpx.get(f"{self.url}/healthz", trust_env=False).status_code == 200,
            timeout=30,
        )

    def log(self) -> list[dict[str, object]]:
        """Its log lines, every one of them a JSON document."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=60)
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def starting(stripe_settings: Settings) -> Iterator[Callable[..., Program]]:
    """Starts programs and ends them."""
    started: list[Program] = []

    def start(port: int, **more: str) -> Program:
        started.append(Program(stripe_settings, port, **more))
        return started[-1]

    yield start
    for program in started:
        program.end()


@pytest.mark.parametrize(
    ("point", "answered"),
    [("notice.before_commit", "done"), ("notice.after_commit", "already")],
)
def test_killed_between_effect_and_answer_the_event_comes_again_and_is_done_once(
    shop: Shop, starting: Callable[..., Program], point: str, answered: str
):
    port = a_free_port()
    first = starting(port, WEIGHBRIDGE_FAILPOINTS=f"{point}=1")
    first.until_up()
    body = shop.a_top_up()
    with pytest.raises(httpx.HTTPError):
        httpx.post(
            first.url + WEBHOOK, content=body, headers=signed(body), trust_env=False, timeout=20
        )
    assert first.process.wait(timeout=60) == -signal.SIGKILL
    assert shop.books.granted() == (0 if answered == "done" else 500)
    second = starting(port)
    second.until_up()
    again = httpx.post(
        second.url + WEBHOOK, content=body, headers=signed(body), trust_env=False, timeout=20
    )
    assert again.json() == {"result": answered}
    assert shop.books.granted() == 500
    assert list(shop.books.events().values()) == ["done"]


def test_stripe_delivers_again_what_a_killed_api_did_not_answer(
    shop: Shop, starting: Callable[..., Program]
):
    port = a_free_port()
    first = starting(port, WEIGHBRIDGE_FAILPOINTS="notice.after_commit=1")
    first.until_up()
    shop.stripe.deliver_to(first.url)
    shop.stripe.buy(shop.ref)
    event = shop.stripe.event_of("checkout.session.completed")
    assert first.process.wait(timeout=60) == -signal.SIGKILL
    starting(port)
    shop.stripe.until_delivered(event, timeout=60)
    assert shop.books.granted() == 500


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_what_is_under_way(
    shop: Shop, starting: Callable[..., Program], number: signal.Signals
):
    program = starting(a_free_port())
    program.until_up()
    body = shop.a_top_up()
    shop.stripe.control.fault("latency", path="/v1/checkout/*", method="GET", seconds=2)
    answers: list[httpx.Response] = []

    def post() -> None:
        answers.append(
            httpx.post(
                program.url + WEBHOOK,
                content=body,
                headers=signed(body),
                trust_env=False,
                timeout=20,
            )
        )

    posting = threading.Thread(target=post)
    posting.start()
    eventually(lambda: not shop.stripe.control.get("faults"), message="Stripe is being asked")
    program.process.send_signal(number)
    posting.join(timeout=60)
    assert [answer.json() for answer in answers] == [{"result": "done"}]
    assert program.process.wait(timeout=60) == 0
    assert shop.books.granted() == 500
    assert program.process.stdout is not None
    assert b"what was under way has ended" in program.process.stdout.read()


def test_it_says_what_it_serves_and_logs_requests_without_their_content(
    shop: Shop, starting: Callable[..., Program]
):
    program = starting(a_free_port())
    program.until_up()
    body = shop.a_top_up()
    headers = signed(body)
    httpx.post(
        f"{program.url}{WEBHOOK}?a=secret", content=body, headers=headers, trust_env=False
    ).raise_for_status()
    program.process.terminate()
    assert program.process.wait(timeout=60) == 0
    log = program.log()
    [started] = [line for line in log if line["event"] == "api_started"]
    assert started["url"] == program.url
    assert started["serves"] == [
        "POST /webhooks/stripe",
        "GET /healthz",
        "GET /readyz",
        "GET /metrics",
    ]
    assert (started["webhook_secrets"], started["mode"]) == (1, "test")
    [request] = [line for line in log if line["event"] == "request"]
    assert (request["method"], request["path"]) == ("POST", WEBHOOK)
    assert request["status"] == 200
    for hidden in ("secret", SECRET, headers["Stripe-Signature"], "amount_total", "sk_test"):
        assert hidden not in json.dumps([line for line in log if line is not started])


def test_a_missing_secret_is_said_at_the_start(shop: Shop, starting: Callable[..., Program]):
    program = starting(a_free_port(), STRIPE_WEBHOOK_SECRET="", STRIPE_API_KEY="rk_live_x")
    program.until_up()
    events = {str(line["event"]): line for line in program.log()}
    assert "STRIPE_WEBHOOK_SECRET" in str(events["webhooks_refused"]["error"])
    assert "STRIPE_API_KEY" in str(events["stripe_unavailable"]["error"])
    assert "rk_live_x" not in json.dumps(events)
    body = shop.a_top_up()
    assert httpx.post(program.url + WEBHOOK, content=body, trust_env=False).status_code == 503


@pytest.mark.usefixtures("shop")
def test_a_port_that_is_taken_is_said_in_one_sentence(
    starting: Callable[..., Program], tmp_path: Path
):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        program = starting(taken.getsockname()[1])
        assert program.process.wait(timeout=30) == 1
    text = (tmp_path / "api.log").read_text()
    assert "nothing can listen on 127.0.0.1" in " ".join(text.split())
    assert "Traceback" not in text
