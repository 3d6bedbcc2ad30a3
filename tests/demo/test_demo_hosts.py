from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lab.demo.hosts import LEAFLET_PAGES, DifficultHost, ForwardProxy
from lab.demo.visits import closed_port, count_visits


@pytest.fixture
def difficult() -> Iterator[DifficultHost]:
    with DifficultHost(lambda name: f"http://elsewhere/{name}", slow_seconds=0.05) as host:
        yield host


@pytest.fixture
def proxy() -> Iterator[ForwardProxy]:
    with ForwardProxy() as host:
        yield host


def get(url: str, proxy: str | None = None) -> httpx.Response:
    with httpx.Client(proxy=proxy, trust_env=False) as client:
        return client.get(url)


def test_a_gone_page_is_404(difficult: DifficultHost):
    assert get(f"{difficult.url}/gone/3.html?elbrus-gone-3").status_code == 404


def test_a_busy_page_is_503_once_and_then_leads_elsewhere(difficult: DifficultHost):
    answers = [get(f"{difficult.url}/busy/4?elbrus-busy-4") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [503, 302, 302]
    assert answers[1].headers["location"] == "http://elsewhere/4"


def test_two_busy_pages_are_busy_each_for_itself(difficult: DifficultHost):
    assert [get(f"{difficult.url}/busy/{n}").status_code for n in (1, 2, 1)] == [503, 503, 302]


def test_a_slow_page_takes_its_time_and_links_to_the_next(difficult: DifficultHost):
    began = time.monotonic()
    answer = get(f"{difficult.url}/slow/100.html")
    assert time.monotonic() - began >= 0.05
    assert '<a href="/slow/101.html">' in answer.text


def test_the_leaflet_is_a_site_of_so_many_pages(difficult: DifficultHost):
    waiting, seen = ["/leaflet/"], set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        text = get(difficult.url + path).text
        waiting += [part.partition('"')[0] for part in text.split('href="')[1:]]
    assert len(seen) == LEAFLET_PAGES


def test_the_proxy_passes_a_page_on_and_notes_whole_urls(
    proxy: ForwardProxy, difficult: DifficultHost
):
    url = f"{difficult.url}/leaflet/2.html?borealis-7"
    through, direct = get(url, proxy.url), get(url)
    assert (through.status_code, through.text) == (200, direct.text)
    assert proxy.asked() == [url]
    assert difficult.asked() == ["/leaflet/2.html?borealis-7"] * 2


def test_the_proxy_passes_a_redirect_on(proxy: ForwardProxy, difficult: DifficultHost):
    url = f"{difficult.url}/busy/9"
    get(url)
    answer = get(url, proxy.url)
    assert (answer.status_code, answer.headers["location"]) == (302, "http://elsewhere/9")


def test_the_proxy_leads_to_loopback_only(proxy: ForwardProxy):
    assert get("http://192.0.2.1:80/", proxy.url).status_code == 403
    assert get(f"{proxy.url}/not-a-proxy-request").status_code == 403


def test_the_proxy_says_502_where_nobody_answers(proxy: ForwardProxy):
    with closed_port() as nowhere:
        assert get(f"{nowhere}/a.html", proxy.url).status_code == 502


def test_a_closed_port_refuses():
    with closed_port() as nowhere, pytest.raises(httpx.ConnectError):
        get(nowhere)


def test_a_client_that_goes_away_leaves_no_traceback(
    difficult: DifficultHost, capfd: pytest.CaptureFixture[str]
):
    # It connects, however busy the machine is, and does not wait for the answer.
    impatient = httpx.Timeout(10, read=0.01)
    with (
        pytest.raises(httpx.ReadTimeout),
        httpx.Client(trust_env=False, timeout=impatient) as client,
    ):
        client.get(f"{difficult.url}/slow/1.html")
    get(f"{difficult.url}/slow/1.html")
    assert "Traceback" not in capfd.readouterr().err


def test_visits_are_counted_as_whole_urls(tmp_path: Path):
    log = tmp_path / "site-access.log"
    log.write_text("/abc.html?atlas-0\n/abc.html?atlas-0\n/sys.html\n")
    visits = count_visits(
        site_url="http://site",
        site_log=log,
        difficult_url="http://difficult",
        difficult=["/gone/1"],
        proxy=["http://site/sys.html"],
    )
    assert visits == {
        "http://site/abc.html?atlas-0": 2,
        "http://site/sys.html": 2,
        "http://difficult/gone/1": 1,
    }
