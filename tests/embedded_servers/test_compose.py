"""docker-compose.yml and the Dockerfile, read as they stand: no engine is needed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from billing.settings import Settings

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[2]
SERVERS = {"postgres", "valkey", "rabbitmq"}
OURS = {"migrate", "worker", "consumer", "beat", "api", "flower"}
Service = dict[str, Any]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    content = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert isinstance(content, dict)
    return content


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Service]:
    found = compose["services"]
    assert isinstance(found, dict)
    return found


def test_every_part_is_there(services: dict[str, Service]):
    assert set(services) == SERVERS | OURS


def test_every_service_that_stays_up_has_a_health_check(services: dict[str, Service]):
    unchecked = {name for name, service in services.items() if "test" not in service["healthcheck"]}
    assert unchecked == {"migrate"}


def test_nothing_starts_before_the_schema_is_there_and_the_servers_are_healthy(
    services: dict[str, Service],
):
    for name in OURS - {"migrate"}:
        waits = {what: how["condition"] for what, how in services[name]["depends_on"].items()}
        assert waits == {
            "migrate": "service_completed_successfully",
            "valkey": "service_healthy",
            "rabbitmq": "service_healthy",
        }
    assert services["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}


def test_every_password_must_be_set_and_none_has_a_default(services: dict[str, Service]):
    for name, service in services.items():
        for variable, value in service["environment"].items():
            if re.search(r"PASS|AUTH$|_URL$", variable):
                assert re.search(r"\$\{[A-Z_]+:\?set it in \.env\}", value), (name, variable)
                rest = re.sub(r"\$\{[^}]*\}", "", value)
                assert not re.search(r":[^/@:\d][^@/]*@", rest), (name, variable)


def test_the_example_names_every_variable_and_gives_no_value():
    wanted = set(re.findall(r"\$\{([A-Z_]+):\?", (ROOT / "docker-compose.yml").read_text()))
    lines = [line for line in (ROOT / ".env.example").read_text().splitlines() if "=" in line]
    given = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    assert set(given) == wanted
    assert set(given.values()) == {""}


def test_only_three_ports_are_published_and_on_loopback(services: dict[str, Service]):
    published = {name: s["ports"] for name, s in services.items() if "ports" in s}
    assert published == {
        "rabbitmq": ["127.0.0.1:15672:15672"],
        "flower": ["127.0.0.1:5555:5555"],
        "api": ["127.0.0.1:8010:8010"],
    }


def test_the_servers_network_is_internal_and_databases_are_nowhere_else(
    compose: dict[str, Any], services: dict[str, Service]
):
    assert compose["networks"]["servers"] == {"internal": True}
    assert services["postgres"]["networks"] == services["valkey"]["networks"] == ["servers"]


def test_every_command_starts_a_program_of_the_package(services: dict[str, Service]):
    for name in OURS:
        program, *arguments = services[name]["command"]
        if program == "celery":
            assert arguments[:2] == ["-A", "weighbridge.workers"]
            assert arguments[2] in {"worker", "beat", "flower"}
        else:
            assert program == "billing"
            assert arguments in (["migrate"], ["consumer"], ["api"])


def test_every_setting_of_ours_exists(services: dict[str, Service]):
    known = {f"WEIGHBRIDGE_{name.upper()}" for name in Settings.model_fields}
    known |= {"DATABASE_URL", "REDIS_URL", "AMQP_URL", "RESULT_URL"}
    known |= {"STRIPE_API_KEY", "STRIPE_WEBHOOK_SECRET", "STRIPE_LIVE"}
    used = {variable for name in OURS for variable in services[name]["environment"]}
    used |= set(re.findall(r"WEIGHBRIDGE_[A-Z_]+", (ROOT / "Dockerfile").read_text()))
    assert used <= known


def test_the_image_installs_by_hash_runs_as_nobody_special_and_copies_what_is_there():
    text = (ROOT / "Dockerfile").read_text()
    final = text.split("\nFROM ")[-1]
    assert "--require-hashes -r requirements/base.txt" in text
    assert "\nUSER weighbridge" in final
    assert "HEALTHCHECK" in final
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for part in source.split():
            assert (ROOT / part).exists(), part
