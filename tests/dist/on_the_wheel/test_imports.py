"""What is installed: one name, light, and every part that needs no extra."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
import weighbridge
from weighbridge import CustomerRequired, QuotaExceeded, errors

EXTRAS = ("fastapi", "uvicorn", "stripe", "flower", "pyarrow", "httpx", "selectolax")
FACE = (
    "BEAT_SCHEDULE", "CustomerRequired", "MeteredTask", "Metering", "QuotaExceeded", "bill_to",
    "usage",
)  # fmt: skip
NO_BARE_NAME = (
    "; import sys; assert not {n.split('.')[0] for n in sys.modules} & {'billing', 'workers'}"
)


def python(*arguments: str) -> str:
    return subprocess.check_output([sys.executable, *arguments], text=True)


def test_no_extra_is_installed():
    assert [name for name in EXTRAS if find_spec(name)] == []


@pytest.mark.parametrize("name", ["billing", "workers", "alembic.env"])
def test_nothing_of_ours_is_under_another_name(name: str):
    assert find_spec(name) is None


@pytest.mark.parametrize("name", FACE)
def test_a_name_of_the_face(name: str):
    python("-c", f"from weighbridge import {name}{NO_BARE_NAME}")


def test_importing_the_name_alone_imports_nothing_heavy():
    heavy = "{'celery', 'redis', 'sqlalchemy', 'pydantic'}"
    python("-c", f"import sys, weighbridge; assert not {heavy} & set(sys.modules)")


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'weighbridge' has no attribute 'nothing'"):
        weighbridge.nothing  # noqa: B018


def test_the_version_is_that_of_the_wheel():
    assert weighbridge.__version__ == version("weighbridge")


@pytest.mark.parametrize(
    "module",
    [
        "errors",
        "testing",
        "workers.metering",
        "workers.beat_jobs",
        "billing.container",
        "billing.usage_log.consumer",
        "billing.transport.relay",
        "billing.postgres.migrations",
        "billing.cli.main",
    ],
)
def test_a_part_without_an_extra(module: str):
    python("-c", f"import weighbridge.{module}{NO_BARE_NAME}")


def test_every_exception_is_in_one_tree():
    assert errors.QuotaExceeded is QuotaExceeded
    assert errors.CustomerRequired is CustomerRequired
    assert issubclass(QuotaExceeded, errors.WeighbridgeError)
    assert issubclass(CustomerRequired, errors.WeighbridgeError)


def test_flowers_configuration_says_where_it_is_and_refuses_to_do_without_a_password():
    path = python("-m", "weighbridge.flowerconfig").strip()
    assert path.endswith("/weighbridge/flowerconfig.py")
    refused = subprocess.run(
        [sys.executable, "-c", f"exec(open({path!r}).read(), {{}})"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 78
    assert "WEIGHBRIDGE_FLOWER_BASIC_AUTH" in refused.stderr


def test_a_command_whose_extra_is_missing_says_which_to_install():
    script = Path(sys.executable).parent / "billing"
    refused = subprocess.run([script, "api"], capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert 'pip install "weighbridge[api]"' in refused.stderr


@pytest.mark.parametrize("command", ["billing", "weighbridge"])
def test_a_console_script(command: str):
    script = Path(sys.executable).parent / command
    assert "Usage" in subprocess.check_output([script, "--help"], text=True)
    said = subprocess.check_output([script, "--version"], text=True)
    assert said == f"weighbridge {version('weighbridge')}\n"
