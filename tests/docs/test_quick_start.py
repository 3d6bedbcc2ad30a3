"""The README's way into an existing app, command by command, on real servers."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from docs_pages import pages
from examples import command_lines, environment, files_of, python_blocks, run_file, write_files
from support import eventually

from billing.settings import Settings

README = next(page for page in pages() if page.name == "README.md")

HERE = """
from shop import app

app.conf.update(
    task_default_queue="{queue}",
    event_exchange="{queue}.events",
    control_exchange="{queue}.control",
)
"""
"""The README's app on a queue of this test's own: others share its RabbitMQ."""


@pytest.fixture
def variables(settings: Settings, redis_client: redis.Redis, rabbitmq_url: str) -> dict[str, str]:  # noqa: ARG001 - deletes the keys
    """The environment of the README's programs, with this test's servers and names."""
    assert settings.database_url
    assert settings.redis_url
    names = ("redis_prefix", "usage_exchange", "usage_queue", "spool_dir", "local_dir")
    return {
        "DATABASE_URL": settings.database_url.get_secret_value(),
        "REDIS_URL": settings.redis_url.get_secret_value(),
        "RESULT_URL": settings.redis_url.get_secret_value(),
        "AMQP_URL": rabbitmq_url,
        "WEIGHBRIDGE_QUARANTINE_SECONDS": "0",
        **{f"WEIGHBRIDGE_{name.upper()}": str(getattr(settings, name)) for name in names},
    }


@contextmanager
def celery_worker(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """A worker of the README's app, once it is ready."""
    log = folder / "worker.log"
    command = [sys.executable, "-m", "celery", "-A", "here", "worker", "-l", "INFO", "-c", "1"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=out, stderr=out, start_new_session=True
        )
    try:
        eventually(lambda: " ready." in log.read_text(), timeout=60, message="the worker is ready")
        yield
        process.terminate()
        assert process.wait(30) == 0, log.read_text()[-3000:]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def test_the_readme_leads_to_a_receipt(
    variables: dict[str, str], settings: Settings, tmp_path: Path
):
    rendering, submission = python_blocks(README)
    write_files(tmp_path, files_of([rendering]))
    write_files(tmp_path, {"here.py": HERE.format(queue=settings.task_queue)})
    write_files(tmp_path, {"submit.py": f"import here\n{submission}"})
    environ = environment(tmp_path, **variables)

    def billing(line: str) -> str:
        ended = subprocess.run(
            [sys.executable, "-m", "billing.cli", *shlex.split(line)[1:]],
            check=False, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert ended.returncode == 0, (line, ended.stdout, ended.stderr)
        return ended.stdout

    setting_up = command_lines(README, "billing migrate")
    programs = [line for line in setting_up if line.endswith("&")]
    assert programs == ["celery -A shop worker &", "celery -A shop beat &", "billing consumer &"]
    for line in setting_up:
        if line not in programs:
            billing(line)
    with celery_worker(tmp_path, environ):
        printed = run_file(tmp_path, "submit.py", **variables)
    assert printed == "<h1>https://example.com/</h1>\n"
    # The worker is gone; its relay may not have come to the last event yet.
    billing("billing relay --drain")
    assert "1 logged" in billing("billing consumer --drain")
    asking = command_lines(README, "billing receipt")
    assert asking == ["billing receipt acme", "billing report status"]
    receipt, _ = map(billing, asking)
    assert "page-render" in receipt
    assert "2.5 credits" in receipt
