"""Figures for whoever watches: over HTTP and from the command, with servers here and away."""

from __future__ import annotations

import httpx
import pytest
import redis
from pydantic import SecretStr
from support import add_customer, add_sku

from billing.api.app import app_of
from billing.api.server import ApiServer
from billing.container import Container
from billing.core.admission import TaskFacts
from billing.health.prometheus import CONTENT_TYPE, exposition
from billing.settings import Settings

pytestmark = [pytest.mark.postgres, pytest.mark.redis]


def figures(text: str) -> dict[str, float]:
    pairs = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def test_they_are_served_in_the_text_format(settings: Settings, redis_client: redis.Redis):
    del redis_client
    with Container(settings) as container, ApiServer(app_of(container), "127.0.0.1", 0) as server:
        add_sku(container.engine, "page-capture")
        add_customer(container.engine, "acme")
        facts = TaskFacts(task_id="t-1", customer="acme", metered_at=container.clock.now())
        admission = container.meter.admit(facts, "page-capture", None)
        container.meter.settle(admission, container.meter.recorder(admission.sku))
        container.writer.write([b"not json"])
        answer = httpx.get(f"{server.url}/metrics", timeout=10, trust_env=False)
        assert answer.status_code == httpx.codes.OK
        assert answer.headers["content-type"] == CONTENT_TYPE
        found = figures(answer.text)
        assert found['weighbridge_up{server="postgresql"}'] == 1
        assert found['weighbridge_up{server="redis"}'] == 1
        assert found["weighbridge_outbox_events"] == 1
        assert found["weighbridge_outbox_oldest_seconds"] >= 0
        assert found["weighbridge_dead_letters_open"] == 1
        assert found['weighbridge_archives{state="dropped"}'] == 0
        # Anybody who may scrape may read them.
        assert "acme" not in answer.text


def test_a_server_that_is_away_is_a_figure_and_not_an_error(settings: Settings):
    away = SecretStr("redis://:secret@127.0.0.1:1/0")
    with Container(settings.model_copy(update={"redis_url": away})) as container:
        text = exposition(container).decode()
    found = figures(text)
    assert found['weighbridge_up{server="postgresql"}'] == 1
    assert found['weighbridge_up{server="redis"}'] == 0
    assert "weighbridge_outbox_events" not in found
    assert "secret" not in text
