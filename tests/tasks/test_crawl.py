"""Crawling: which pages, in which order, how many. On a generated site in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.core.errors import InvalidValue
from workers.tasks.crawl import ATTEMPTS_PER_PAGE, MAX_DEPTH, CrawlEnd, crawl, site_of
from workers.tasks.errors import BadStatusError, FetchError, RefusedError
from workers.tasks.fetch import Page

SEED = "http://a.example/"


class GeneratedSite:
    """Pages by path, each with links and a text; ``moved`` paths redirect."""

    def __init__(
        self,
        links: Mapping[str, Sequence[str]],
        texts: dict[str, str] | None = None,
        moved: dict[str, str] | None = None,
    ) -> None:
        self.links = links
        self.texts = texts or {}
        self.moved = moved or {}
        self.fetched: list[str] = []

    def fetch(self, url: str) -> Page:
        self.fetched.append(url)
        final = self.moved.get(url, url)
        if final not in self.links:
            raise BadStatusError(url, "it answered 404")
        anchors = "".join(f'<a href="{link}">x</a>' for link in self.links[final])
        body = f"<title>{final}</title>{self.texts.get(final, '')}{anchors}".encode()
        return Page(
            url=url,
            final_url=final,
            status=200,
            content_type="text/html",
            body=body,
            elapsed_seconds=0.0,
        )


def url(path: str) -> str:
    return f"http://a.example/{path}"


TREE = GeneratedSite(
    {
        url(""): ["a", "b"],
        url("a"): ["a1", "a2", "/"],
        url("b"): ["b1", "a1"],
        url("a1"): ["deep"],
        url("a2"): [],
        url("b1"): [],
        url("deep"): [],
    }
)


def run(site: GeneratedSite, max_pages: int = 100, query: str = "word", seed: str = SEED):
    site.fetched.clear()
    examined: list[str] = []
    return crawl(seed, query, max_pages, site.fetch, examined.append), examined


def test_pages_are_examined_nearest_first_and_each_once():
    result, examined = run(TREE)

    assert examined == [url(p) for p in ("", "a", "b", "a1", "a2", "b1", "deep")]
    assert TREE.fetched == examined
    assert result.pages_examined == 7
    assert result.end is CrawlEnd.NO_MORE_PAGES


@pytest.mark.parametrize("most", [1, 2, 5, 6])
def test_no_more_pages_are_examined_or_fetched_than_asked_for(most: int):
    result, examined = run(TREE, most)
    assert result.pages_examined == len(examined) == len(TREE.fetched) == most
    assert result.end is CrawlEnd.PAGE_LIMIT


def test_exactly_as_many_pages_as_asked_for_end_at_the_limit():
    assert run(TREE, 7)[0].end is CrawlEnd.PAGE_LIMIT
    assert run(TREE, 8)[0].end is CrawlEnd.NO_MORE_PAGES


def test_a_page_that_cannot_be_fetched_is_skipped_and_does_not_count():
    site = GeneratedSite({url(""): ["gone", "b"], url("b"): []})
    result, examined = run(site, 2)

    assert examined == [url(""), url("b")]
    assert [(s.url, s.reason) for s in result.skipped] == [(url("gone"), "it answered 404")]


def test_a_seed_that_cannot_be_fetched_is_a_failure():
    with pytest.raises(BadStatusError):
        run(GeneratedSite({}))


def test_a_seed_that_is_no_url_is_refused_before_anything_is_fetched():
    site = GeneratedSite({})
    with pytest.raises(RefusedError):
        run(site, seed="ftp://a.example/")
    assert site.fetched == []


def test_other_hosts_and_ports_are_not_gone_to():
    elsewhere = ["http://b.example/", "http://www.a.example/", "http://a.example:8080/", "//c.x/"]
    site = GeneratedSite({url(""): [*elsewhere, "https://a.example/s"], "https://a.example/s": []})
    _, examined = run(site)
    assert examined == [SEED, "https://a.example/s"]


def test_one_page_under_many_spellings_is_fetched_once():
    spellings = ["a", "./a", "/a#part", "HTTP://A.Example:80/a", "x/../a"]
    site = GeneratedSite({url(""): [*spellings, "/", "#top", ""], url("a"): []})
    run(site)
    assert site.fetched == [SEED, url("a")]


def test_the_seed_may_redirect_to_the_host_that_is_then_the_site():
    site = GeneratedSite(
        {"http://www.a.example/": ["x", SEED + "old"], "http://www.a.example/x": []},
        moved={SEED: "http://www.a.example/"},
    )
    _, examined = run(site)
    assert examined == ["http://www.a.example/", "http://www.a.example/x"]


def test_a_page_that_redirects_elsewhere_is_skipped():
    site = GeneratedSite(
        {url(""): ["out", "b"], url("b"): [], "http://b.example/": []},
        moved={url("out"): "http://b.example/"},
    )
    result, examined = run(site)
    assert examined == [SEED, url("b")]
    assert result.skipped[0].reason == "it redirects to another site"


def test_a_page_reached_by_two_redirects_is_examined_once():
    site = GeneratedSite(
        {url(""): ["one", "two"], url("same"): []},
        moved={url("one"): url("same"), url("two"): url("same")},
    )
    result, examined = run(site)
    assert examined == [SEED, url("same")]
    assert [skipped.url for skipped in result.skipped] == [url("two")]


def test_a_chain_of_pages_is_followed_as_deep_as_allowed_and_no_deeper():
    site = GeneratedSite({url(str(n)): [str(n + 1)] for n in range(50)})
    result, examined = run(site, seed=url("0"))
    assert examined == [url(str(n)) for n in range(MAX_DEPTH + 1)]
    assert result.end is CrawlEnd.NO_MORE_PAGES


def test_a_site_of_broken_links_ends():
    site = GeneratedSite({url(""): [f"gone{n}" for n in range(1000)]})
    result, _ = run(site, 5)
    assert result.pages_examined == 1
    assert len(site.fetched) <= 5 * ATTEMPTS_PER_PAGE


def test_a_site_where_broken_links_keep_turning_up_ends():
    links = {url(f"{n}"): [f"{n + 1}", *[f"gone{n}-{i}" for i in range(20)]] for n in range(30)}
    site = GeneratedSite(links)
    result, _ = run(site, 4, seed=url("0"))
    assert len(site.fetched) <= 4 * ATTEMPTS_PER_PAGE
    assert result.end in {CrawlEnd.ATTEMPT_LIMIT, CrawlEnd.NO_MORE_PAGES}
    assert result.skipped


def test_matches_have_the_best_first_and_the_nearest_first_among_equals():
    site = GeneratedSite(
        {url(""): ["a", "b", "c"], url("a"): [], url("b"): [], url("c"): []},
        texts={url("a"): "one word", url("b"): "word and word", url("c"): "a word"},
    )
    result, _ = run(site)

    assert [(m.url, m.score) for m in result.matches] == [
        (url("b"), 2),
        (url("a"), 1),
        (url("c"), 1),
    ]
    assert result.matches[0].title == url("b")
    assert "word and word" in result.matches[0].snippets[0]


def test_pages_examined_before_an_error_in_the_fetcher_were_told():
    def fetch(where: str) -> Page:
        if where == url("b"):
            raise RuntimeError("the worker is told to stop")
        return TREE.fetch(where)

    examined: list[str] = []
    with pytest.raises(RuntimeError):
        crawl(SEED, "word", 100, fetch, examined.append)
    assert examined == [SEED, url("a")]


@pytest.mark.parametrize(("query", "most"), [("", 5), ("word", 0), ("word", -1)])
def test_a_search_that_makes_no_sense_fetches_nothing(query: str, most: int):
    site = GeneratedSite({SEED: []})
    with pytest.raises(InvalidValue):
        run(site, most, query)
    assert site.fetched == []


def test_http_and_https_of_a_host_are_one_site():
    assert site_of("http://a.example/") == site_of("https://a.example/x") != site_of("http://b/")


@given(
    st.dictionaries(st.integers(0, 15), st.lists(st.integers(0, 20), max_size=8), max_size=16),
    st.integers(1, 20),
)
def test_on_any_site_the_counts_are_right(graph: dict[int, list[int]], most: int):
    graph = {0: [], **graph}
    site = GeneratedSite({url(str(n)): [str(m) for m in links] for n, links in graph.items()})
    try:
        result, examined = run(site, most, seed=url("0"))
    except FetchError:
        pytest.fail("the seed is there")
    assert len(examined) == result.pages_examined == len(set(examined)) <= most
    assert len(site.fetched) == result.pages_examined + len(result.skipped)
    assert len(site.fetched) == len(set(site.fetched)) <= most * ATTEMPTS_PER_PAGE
