"""Every Python example of the README and of "Adding Weighbridge to your app" runs as it stands."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from docs_pages import Page, pages
from examples import exports, files_of, python_blocks, run_file, write_files

from billing.settings import Settings
from workers.beat_schedule import BEAT_SCHEDULE

README, ADDING = (
    next(page for page in pages() if page.name == name)
    for name in ("README.md", "docs/adding-to-your-app.md")
)

MEMORY = """
from dataclasses import replace

from billing.core.sku import Pricing
from weighbridge import Metering
from weighbridge.testing import MemorySystem, sku

skus = [sku("page-render", price="2.5"), sku("page-capture", price="1")]
search = replace(sku("forensic-search", price="0.5"), pricing=Pricing.MEASURED)
system = MemorySystem(skus=[*skus, search], credits={"acme": "100", "poor": "2"})


def in_memory(app):
    Metering(app, build=lambda settings: system)
    app.conf.update(task_always_eager=True, task_store_eager_result=True)
    app.conf.update(cache_backend="memory", result_backend="cache+memory://")


def charged():
    return [(event.customer, event.sku, event.amount_microcredits) for event in system.events]
"""
"""What the tests put in the place of the servers: credits in memory, tasks run where submitted."""

RENDERED = "('acme', 'page-render', 2500000)"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with ``memory.py``, in which a test writes a project of the documentation."""
    write_files(tmp_path, {"memory.py": MEMORY})
    return tmp_path


def check(project: Path, code: str, **variables: str) -> list[str]:
    write_files(project, {"check.py": code})
    return run_file(project, "check.py", **variables).splitlines()


# -- every example is run by some test ----------------------------------------------------------

RUN = {
    "README.md": [""],
    "docs/adding-to-your-app.md": [
        *("The app", "Django", "Flask", "FastAPI"),
        *("Customers of submissions", "Charges", "Tests without servers"),
    ],
}
"""The sections whose examples the tests below, and those of the quick start, run."""


@pytest.mark.parametrize("page", [README, ADDING], ids=lambda page: page.name)
def test_no_example_stands_outside_of_the_sections_that_are_run(page: Page):
    run = [block for section in RUN[page.name] for block in python_blocks(page, section)]
    assert run == python_blocks(page)


@pytest.mark.parametrize("page", [README, ADDING], ids=lambda page: page.name)
def test_an_example_imports_what_an_installed_weighbridge_has(page: Page):
    """Not the packages of the sources: those exist in a checkout alone."""
    tops = {
        (node.module or "").partition(".")[0]
        for block in python_blocks(page)
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom)
    }
    assert "weighbridge" in tops
    assert not tops & {"billing", "workers"}


@pytest.mark.parametrize("page", [README, ADDING], ids=lambda page: page.name)
def test_the_servers_are_named_by_urls_that_the_settings_take(
    page: Page, monkeypatch: pytest.MonkeyPatch
):
    named = exports(page)
    assert set(named) >= {"DATABASE_URL", "REDIS_URL", "AMQP_URL", "RESULT_URL"}
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.amqp_url
    assert settings.amqp_url.get_secret_value() == named["AMQP_URL"]


# -- the app ------------------------------------------------------------------------------------


def test_both_pages_make_the_same_app():
    readme, adding = (files_of(python_blocks(page))["shop.py"] for page in (README, ADDING))
    before_the_tasks, task = adding.split("\n\n\n")[:2]
    assert readme.split("\n\n\n")[0] == before_the_tasks
    assert re.sub("  # .*", "", readme.split("\n\n\n")[1]).strip() == task


def test_the_app_is_one_whose_worker_may_start(project: Path):
    write_files(project, files_of(python_blocks(README)))
    asked = """
from billing.settings import Settings
from shop import app, render
from workers.startup_checks import TaskSetup, check_serializers, check_tasks

setup = TaskSetup(
    name=render.name,
    sku=render.sku,
    acks_late=render.acks_late,
    time_limit=app.conf.task_time_limit,
    soft_time_limit=app.conf.task_soft_time_limit,
)
app.loader.import_default_modules()  # as a worker does when it starts
print(check_tasks(Settings(), [setup]), check_serializers(app.conf.accept_content))
print(*sorted(name for name in app.tasks if name.startswith("billing.")))
"""
    jobs = sorted(each["task"] for each in BEAT_SCHEDULE.values())
    assert check(project, asked) == ["[] []", " ".join(jobs)]


def test_the_app_renders_and_a_denial_says_why(project: Path):
    rendering, submission = python_blocks(README)
    write_files(project, files_of([rendering]))
    code = "from memory import charged, in_memory\nfrom shop import app\nin_memory(app)\n"
    shown = check(project, f"{code}{submission}\nprint(charged())")
    assert shown == ["<h1>https://example.com/</h1>", f"[{RENDERED}]"]
    poor = submission.replace("acme", "poor")
    assert check(project, f"{code}{poor}") == ["insufficient_credits 2500000 2000000"]


def test_customers_are_named_in_every_way_of_submitting(project: Path):
    write_files(project, files_of(python_blocks(ADDING, "The app")))
    (submissions,) = python_blocks(ADDING, "Customers of submissions")
    code = f"""
from memory import charged, in_memory
from shop import app
in_memory(app)
{submissions}
print(*charged(), sep="\\n")
"""
    assert check(project, code) == [RENDERED] * 5


def test_a_measured_task_is_charged_what_it_recorded(project: Path):
    write_files(project, files_of(python_blocks(ADDING, "The app")))
    (measured,) = python_blocks(ADDING, "Charges")
    code = f"""
from memory import charged, in_memory, system
from shop import app as shop
in_memory(shop)
{measured}
search.bill_to("acme").delay("seed", 4).get()
print(*charged(), sep="\\n")
print(system.events[0].subject)
"""
    assert check(project, code) == [
        "('acme', 'forensic-search', 2000000)",
        "('acme', 'page-capture', 1000000)",
        "seed",
    ]


def test_the_example_of_a_test_without_servers_runs(project: Path):
    (example,) = python_blocks(ADDING, "Tests without servers")
    code = f"{example}\nprint(*(event.amount_microcredits for event in system.events))"
    assert check(project, code) == ["2500000 2500000 0"]


# -- web frameworks -----------------------------------------------------------------------------

DJANGO_SETTINGS = """
from proj.celery_settings import *

SECRET_KEY = "tests"
ALLOWED_HOSTS = ["testserver"]
ROOT_URLCONF = "proj.urls"
LOGIN_URL = "/login/"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "pages", "billing_of_ours"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
USE_TZ = True
"""

DJANGO_CHECK = """
import proj
import django
from memory import charged, in_memory

django.setup()
in_memory(proj.celery_app)

from django.contrib.auth.models import AnonymousUser, User
from django.test import RequestFactory
from pages.views import render_page

request = RequestFactory().post("/pages", {"url": "https://example.com/"})
request.user = User(username="acme")
print(render_page(request).status_code, charged())
request.user = AnonymousUser()
print(render_page(request).status_code, len(charged()))
print(proj.celery_app.conf.task_time_limit, proj.celery_app.conf.broker_url)
print("pages.tasks.render" in proj.celery_app.tasks)
"""


def test_the_django_project_bills_the_user_that_is_logged_in(project: Path):
    files = files_of(python_blocks(ADDING, "Django"))
    assert len(files) == len(python_blocks(ADDING, "Django")) == 5
    theirs = {"proj/settings.py": DJANGO_SETTINGS, "proj/urls.py": "urlpatterns = []"}
    theirs |= {f"{package}/__init__.py": "" for package in ("pages", "billing_of_ours")}
    write_files(project, {**theirs, **files})
    assert check(project, DJANGO_CHECK) == [
        f"202 [{RENDERED}]",
        "302 1",
        "600 memory://",
        "True",
    ]


FLASK_CHECK = """
from flask import g
from memory import charged, in_memory
from site_app import app, render, site

in_memory(app)


@site.before_request
def log_in():
    g.customer = "acme"


answer = site.test_client().post("/pages", data={"url": "https://example.com/"})
print(answer.status_code, charged())
print(app.AsyncResult(answer.json["task"]).get())
"""


def test_the_flask_site_bills_inside_its_request_and_runs_in_its_context(project: Path):
    write_files(project, files_of(python_blocks(ADDING, "Flask")))
    assert check(project, FLASK_CHECK) == [
        f"202 [{RENDERED}]",
        "<title>Pages</title>https://example.com/",
    ]


FASTAPI_CHECK = """
from fastapi.testclient import TestClient
from memory import charged, in_memory
from service import app, service

in_memory(app)
client = TestClient(service)
submit = {"url": "/pages", "params": {"url": "https://example.com/"}}
print(client.post(**submit).status_code)
for login in ("acme", "poor"):
    task = client.post(**submit, auth=(login, "secret")).json()["task"]
    answer = client.get(f"/pages/{task}")
    print(answer.status_code, answer.json())
print(charged())
"""


def test_the_fastapi_service_answers_a_denial_with_payment_required(project: Path):
    write_files(project, files_of(python_blocks(ADDING, "FastAPI")))
    assert check(project, FASTAPI_CHECK) == [
        "401",
        "200 {'state': 'SUCCESS', 'page': '<h1>https://example.com/</h1>'}",
        "402 {'detail': 'insufficient_credits, needed 2500000, left 2000000'}",
        f"[{RENDERED}, ('poor', 'page-render', 0)]",
    ]
