from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from support import eventually

from lab.demo import programs, site
from lab.demo.pages import LIGHT_PAGES, SEARCH_SEEDS


@dataclass
class Served:
    """The documentation server of this module's tests."""

    client: httpx.Client
    log: Path

    def title(self, path: str) -> str:
        text = self.client.get(path).raise_for_status().text
        return text.partition("<title>")[2].partition("</title>")[0]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("site")
    program = programs.site(folder)
    process = subprocess.Popen(list(program.arguments), cwd=folder)
    try:
        eventually(lambda: program.ready(""), timeout=60, message="the site answers")
        url = (folder / programs.SITE_URL).read_text()
        with httpx.Client(base_url=url, trust_env=False, timeout=20) as client:
            yield Served(client, folder / programs.SITE_LOG)
    finally:
        process.terminate()
        process.wait(60)


def test_it_serves_the_documentation_of_a_module(served: Served):
    assert served.title("/textwrap.html").endswith(": module textwrap")


def test_a_query_tells_requests_apart_and_is_otherwise_ignored(served: Served):
    assert served.title("/bisect.html?atlas-17").endswith(": module bisect")
    assert "/bisect.html?atlas-17" in served.log.read_text().splitlines()


def test_a_page_is_written_once_and_logged_each_time(monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    logged: list[str] = []
    monkeypatch.setattr(site, "_pages", lambda path, _type: asked.append(path) or "a page")
    site.written.cache_clear()
    pages = [site.page(f"/once.html?atlas-{n}", "text/html", logged.append) for n in range(3)]
    site.written.cache_clear()
    assert pages == ["a page"] * 3
    assert asked == ["/once.html"]
    assert logged == ["/once.html?atlas-0", "/once.html?atlas-1", "/once.html?atlas-2"]


def test_its_index_has_several_hundred_links(served: Served):
    assert served.client.get("/index.html").text.count('.html">') > 200


def test_it_documents_the_standard_library_and_nothing_else(served: Served):
    index = served.client.get("/index.html").text
    assert 'href="json.html"' in index
    assert "sqlalchemy" not in index


@pytest.mark.parametrize(
    "path",
    ["/antigravity.html", "/idlelib.idle.html", "/test.html", "/this.html", "/json.__main__.html"],
)
def test_what_does_something_when_imported_is_not_served(served: Served, path: str):
    assert not site.is_served(path)
    assert served.title(path) == "not served"


def test_the_light_pages_and_the_seeds_are_there(served: Served):
    missing = [
        name
        for name in (*LIGHT_PAGES, *SEARCH_SEEDS)
        if not served.title(f"/{name}.html").endswith((f"module {name}", f"package {name}"))
    ]
    assert missing == []


def test_it_runs_without_site_packages(tmp_path: Path):
    arguments = programs.site(tmp_path).arguments
    assert arguments[:3] == [sys.executable, "-I", "-S"]
