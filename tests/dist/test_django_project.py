"""A Django project with an app ``billing`` and a package ``workers`` of its own, on the wheel."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import eventually
from wheel_environment import LIMIT_SECONDS, clean_environment, run

from billing.settings import Settings

pytestmark = [
    pytest.mark.process,
    pytest.mark.worker,
    pytest.mark.timeout(LIMIT_SECONDS),
]

FILES = {
    "manage.py": """
        import os, sys
        from django.core.management import execute_from_command_line
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
        execute_from_command_line(sys.argv)
        """,
    "shop/__init__.py": "from shop.celery import app as celery_app",
    "shop/settings.py": """
        import os
        SECRET_KEY = "test"
        INSTALLED_APPS = ["billing"]
        USE_TZ = True
        CELERY_BROKER_URL = os.environ["AMQP_URL"]
        CELERY_RESULT_BACKEND = os.environ["REDIS_URL"]
        CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS = {
            "global_keyprefix": os.environ["WEIGHBRIDGE_REDIS_PREFIX"] + ":"
        }
        CELERY_TASK_DEFAULT_QUEUE = os.environ["WEIGHBRIDGE_TASK_QUEUE"]
        CELERY_TASK_TIME_LIMIT = 60
        CELERY_TASK_REJECT_ON_WORKER_LOST = True
        CELERY_TASK_ACKS_LATE = True
        """,
    "shop/celery.py": """
        import os
        from celery import Celery
        from weighbridge import Metering
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
        app = Celery("shop")
        app.config_from_object("django.conf:settings", namespace="CELERY")
        app.autodiscover_tasks()
        Metering(app)
        """,
    "billing/__init__.py": "",
    "billing/apps.py": """
        from django.apps import AppConfig
        class BillingConfig(AppConfig):
            name = "billing"
        """,
    "billing/models.py": """
        from django.db import models
        class Card(models.Model):
            number = models.CharField(max_length=20)
        """,
    "billing/tasks.py": """
        import sys
        from celery import shared_task
        from billing.models import Card
        from weighbridge import MeteredTask, usage
        from workers.pages import size
        @shared_task(base=MeteredTask, sku="page-render")
        def render(url):
            usage.record(subject=url)
            modules = {name: str(getattr(module, "__file__", "")) for name, module in
                       list(sys.modules.items()) if name.split(".")[0] in ("billing", "workers")}
            return {"size": size(url), "card": Card(number="1").number, "modules": modules}
        """,
    "workers/__init__.py": "",
    "workers/pages.py": "def size(url): return len(url)",
    "submit.py": """
        import json, os
        os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
        import django
        django.setup()
        import shop
        from billing.tasks import render
        result = render.bill_to("acme").delay("page")
        print(json.dumps({"id": result.id, **result.get(timeout=60)}))
        """,
}


class Project:
    """The project's folder, and programs that run in it."""

    def __init__(self, folder: Path, bin_folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self._bin = bin_folder
        self._environment = clean_environment(bin_folder, **environment)

    def run(self, program: str, *arguments: str) -> str:
        command = [str(self._bin / program), *arguments]
        return run(command, cwd=self.folder, env=self._environment)

    @contextmanager
    def running(self, program: str, *arguments: str) -> Iterator[Path]:
        """A program that goes on; its log."""
        log = self.folder / f"{program}.log"
        command = [str(self._bin / program), *arguments]
        with log.open("w") as out:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self._environment, stdout=out, stderr=out
            )
        try:
            yield log
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(60)


@pytest.fixture(params=["package", "folder"])
def project(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    installed: Path,
    empty_database_url: str,
    settings: Settings,
    rabbitmq_url: str,
    redis_url: str,
) -> Project:
    """The project; its ``workers`` is a package, or a folder without an ``__init__.py``."""
    folder = tmp_path / "project"
    for name, text in FILES.items():
        if name == "workers/__init__.py" and request.param == "folder":
            continue
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = text.strip("\n").splitlines()
        indent = len(lines[0]) - len(lines[0].lstrip()) if lines else 0
        file.write_text("\n".join(line[indent:] for line in lines) + "\n")
    environment = {
        "DATABASE_URL": empty_database_url,
        "REDIS_URL": redis_url,
        "AMQP_URL": rabbitmq_url,
        "WEIGHBRIDGE_LOCAL_DIR": str(settings.local_dir),
        "WEIGHBRIDGE_SPOOL_DIR": str(settings.spool_dir),
        "WEIGHBRIDGE_REDIS_PREFIX": settings.redis_prefix,
        "WEIGHBRIDGE_USAGE_EXCHANGE": settings.usage_exchange,
        "WEIGHBRIDGE_USAGE_QUEUE": settings.usage_queue,
        "WEIGHBRIDGE_TASK_QUEUE": settings.task_queue,
    }
    return Project(folder, installed, environment)


@pytest.mark.usefixtures("redis_client")  # takes the test's keys away
def test_a_shared_task_is_billed_and_has_a_receipt(project: Project):
    project.run("python", "manage.py", "check")
    project.run("billing", "migrate")
    project.run("billing", "skus", "add", "page-render", "--price", "2.5", "--unit", "page")
    project.run("billing", "customers", "add", "acme", "Acme Ltd")
    project.run("billing", "credits", "grant", "acme", "100", "--reference", "order-1017")
    with (
        project.running("celery", "-A", "shop", "worker", "-c", "1", "--loglevel", "INFO") as log,
        project.running("billing", "consumer"),
    ):
        eventually(lambda: " ready." in log.read_text(), timeout=60, message="the worker is ready")
        done = json.loads(project.run("python", "submit.py").splitlines()[-1])
        lines = eventually(
            lambda: _lines(project, done["id"]), timeout=60, interval=0.5, message="a receipt"
        )
    assert (done["size"], done["card"]) == (4, "1")
    assert "billing.tasks" in done["modules"]
    not_its_own = {
        name: file
        for name, file in done["modules"].items()
        # A folder without __init__.py has no file.
        if not file.startswith(str(project.folder)) and name != "workers"
    }
    assert not_its_own == {}
    assert [line["subject"] for line in lines] == ["page"]


def _lines(project: Project, task_id: str) -> list[dict[str, Any]]:
    receipt = json.loads(project.run("billing", "receipt", "--task", task_id, "--json"))
    found: list[dict[str, Any]] = receipt["lines"]
    return found
