"""A real Flower, over its HTTP API: it lists metered tasks, and shows nobody's data to anybody.

What Flower itself leaves open, with or without a password: ``/metrics`` (names of workers and of
tasks, counts and durations; no customer, argument or result) and ``/healthcheck``. Whoever must
not see those has to be kept from its port.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import Live
from support import eventually

import workers
from billing.devtools.embedded_servers.launch import free_ports
from workers.errors import QuotaExceeded
from workers.startup_checks import EX_CONFIG

pytestmark = [pytest.mark.worker, pytest.mark.rabbitmq]

CREDIT = 1_000_000
CONFIGURATION = Path(workers.__file__).parent / "flowerconfig.py"
COMMAND = ("-m", "celery", "-A", "live_app", "flower", f"--conf={CONFIGURATION}")
PASSWORD = ("watcher", "open sesame")
SECRET = "https://customer.example/secret-report"


@pytest.fixture
def flower(live: Live) -> Iterator[httpx.Client]:
    """Flower on a port of its own; a client that knows its password."""
    (port,) = free_ports(1)
    with (
        live.process(
            *COMMAND,
            WEIGHBRIDGE_FLOWER_BASIC_AUTH=":".join(PASSWORD),
            WEIGHBRIDGE_FLOWER_PORT=str(port),
        ) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", auth=PASSWORD, timeout=10) as client,
    ):

        def answers() -> bool:
            assert process.poll() is None
            return client.get("/healthcheck").status_code == httpx.codes.OK

        eventually(answers, timeout=40, message="Flower answers")
        yield client


def listed(flower: httpx.Client, task_id: str, state: str) -> dict[str, Any]:
    """What Flower lists of a task, once it has heard of its end."""

    def told() -> dict[str, Any] | None:
        task: dict[str, Any] = flower.get("/api/tasks").raise_for_status().json().get(task_id, {})
        return task if task.get("state") == state else None

    found = eventually(told, timeout=30, interval=0.2, message=f"{task_id} is {state}")
    assert found is not None
    return found


def test_flower_lists_metered_tasks_and_the_denied_among_them(live: Live, flower: httpx.Client):
    live.container.customers.set_budget("acme", "*", CREDIT)
    page = live.task("page").bill_to("acme")
    with live.worker():
        done = page.delay(SECRET)
        assert done.get(timeout=30) == SECRET
        denied = page.delay(SECRET)
        with pytest.raises(QuotaExceeded):
            denied.get(timeout=30)
        succeeded = listed(flower, done.id, "SUCCESS")
        refused = listed(flower, denied.id, "FAILURE")
        by_state = flower.get("/api/tasks", params={"state": "FAILURE"}).json()
        by_name = flower.get("/api/tasks", params={"taskname": "live.page"}).json()
    assert succeeded["name"] == refused["name"] == "live.page"
    assert "QuotaExceeded" in refused["exception"]
    assert "budget_exceeded" in refused["exception"]
    assert set(by_state) == {denied.id}
    assert set(by_name) == {done.id, denied.id}
    # A customer's arguments are masked.
    for task in (succeeded, refused):
        assert (task["args"], task["kwargs"]) == ("(…)", "{…}")
        assert SECRET not in str({**task, "result": None})


def test_without_the_password_flower_shows_no_task(flower: httpx.Client):
    for path in ("/api/tasks", "/api/workers", "/api/queues/length", "/tasks", "/workers", "/"):
        assert httpx.get(f"{flower.base_url}{path}").status_code == httpx.codes.UNAUTHORIZED, path
        wrong = httpx.get(f"{flower.base_url}{path}", auth=(PASSWORD[0], "wrong"))
        assert wrong.status_code == httpx.codes.UNAUTHORIZED, path
    assert flower.get("/api/tasks").json() == {}


def test_metrics_and_health_are_open_to_all_and_name_no_customer(live: Live, flower: httpx.Client):
    with live.worker():
        done = live.task("page").bill_to("acme").delay(SECRET)
        assert done.get(timeout=30) == SECRET
        listed(flower, done.id, "SUCCESS")
    health = httpx.get(f"{flower.base_url}/healthcheck")
    metrics = httpx.get(f"{flower.base_url}/metrics")
    assert (health.status_code, health.text) == (httpx.codes.OK, "OK")
    assert metrics.status_code == httpx.codes.OK
    assert 'task="live.page"' in metrics.text
    assert SECRET not in metrics.text
    assert "acme" not in metrics.text


def refused(live: Live, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Flower where it is to end by itself."""
    known = live.environment(WEIGHBRIDGE_FLOWER_PORT=str(free_ports(1)[0]))
    known.pop("WEIGHBRIDGE_FLOWER_BASIC_AUTH", None)
    return subprocess.run(
        [sys.executable, *command],
        env={**known, **environment},
        cwd=live.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("password", [None, "", "watcher", "watcher:", ":open sesame"])
def test_flower_does_not_start_without_a_password(live: Live, password: str | None):
    given = {} if password is None else {"WEIGHBRIDGE_FLOWER_BASIC_AUTH": password}
    ended = refused(live, *COMMAND, **given)
    assert ended.returncode == EX_CONFIG, ended.stderr[-2000:]
    assert "WEIGHBRIDGE_FLOWER_BASIC_AUTH" in ended.stderr
    assert "set it to user:password" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_flower_does_not_start_where_its_configuration_was_not_found(live: Live):
    ended = refused(live, *COMMAND[:-1], "--conf=")
    assert ended.returncode != 0, ended.stderr[-2000:]
    assert "Visit me at" not in ended.stderr


def test_the_configuration_says_where_it_is_with_a_password_or_without(live: Live):
    told = refused(live, "-m", "workers.flowerconfig")
    assert (told.returncode, told.stdout) == (0, f"{CONFIGURATION.resolve()}\n")
