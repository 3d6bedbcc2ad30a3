"""What the tasks return and what they record, with the fetcher and the recorder passed in."""

from __future__ import annotations

import hashlib
import json

import pytest
from local_site import Reply, open_policy, page, serve, to

from billing.core.errors import InvalidValue
from workers.tasks.bodies import (
    MOST_PAGES,
    MOST_URLS,
    Fetch,
    capture,
    check_max_pages,
    examine_site,
    search_pages,
)
from workers.tasks.errors import BadStatusError
from workers.tasks.fetch import Fetcher, Page


class Recorded:
    """Adds up as a run's recorder does."""

    def __init__(self) -> None:
        self.quantity: int | None = None
        self.cost_micros = 0
        self.subject: str | None = None
        self.dimensions: dict[str, str] = {}
        self.calls = 0

    def __call__(
        self,
        *,
        quantity: int | None = None,
        cost_micros: int | None = None,
        subject: str | None = None,
        dimensions: dict[str, str] | None = None,
    ) -> None:
        self.calls += 1
        if quantity is not None:
            self.quantity = (self.quantity or 0) + quantity
        self.cost_micros += cost_micros or 0
        self.subject = subject or self.subject
        self.dimensions.update(dimensions or {})


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


@pytest.fixture
def fetch() -> Fetch:
    return Fetcher(open_policy()).fetch


def test_a_capture_says_what_is_on_the_page(fetch: Fetch, recorded: Recorded):
    with serve({"/old": to("/new"), "/new": page("Title", "a", "b", text="words")}) as site:
        got = capture(site.url("/old"), fetch, recorded)

    assert got == {
        "url": site.url("/old"),
        "final_url": site.url("/new"),
        "title": "Title",
        "text_characters": len("words to a to b"),
        "text_sha256": hashlib.sha256(b"words to a to b").hexdigest(),
        "links": [site.url("/a"), site.url("/b")],
        "truncated": False,
    }
    assert json.loads(json.dumps(got)) == got
    assert recorded.subject == site.url("/new")
    assert int(recorded.dimensions["bytes"]) > 50
    assert recorded.quantity is None


def test_a_capture_that_fails_has_its_subject_without_credentials(fetch: Fetch, recorded: Recorded):
    with serve({}) as site, pytest.raises(BadStatusError):
        capture(site.url("/gone"), fetch, recorded)
    assert recorded.subject == site.url("/gone")
    with pytest.raises(Exception, match="user name"):
        capture("http://user:secret@a.example/", fetch, recorded)
    assert recorded.subject == "http://a.example/"


def test_a_search_returns_matches_and_failures_and_costs_each_request(
    fetch: Fetch, recorded: Recorded
):
    routes = {
        "/one": page("One", text="word"),
        "/two": page("Two", text="word word"),
        "/none": page("None"),
        "/moved": to("/one"),
    }
    with serve(routes) as site:
        urls = [site.url(f"/{name}") for name in ("one", "two", "none", "moved", "gone", "one")]
        got = search_pages("word", urls, fetch, recorded, 500)

    assert [(m["url"], m["score"]) for m in got["matches"]] == [
        (site.url("/two"), 2),
        (site.url("/one"), 1),
        (site.url("/one"), 1),
    ]
    assert got["pages_searched"] == 4
    assert got["failures"] == [{"url": site.url("/gone"), "reason": "it answered 404"}]
    assert recorded.cost_micros == 6 * 500  # five addresses, one of them redirected
    assert (recorded.subject, recorded.quantity) == ("word", None)
    assert json.loads(json.dumps(got)) == got


def test_a_search_of_which_no_page_can_be_fetched_fails_with_its_cost_recorded(
    fetch: Fetch, recorded: Recorded
):
    with serve({}) as site, pytest.raises(BadStatusError):
        search_pages("word", [site.url("/a"), site.url("/b")], fetch, recorded, 500)
    assert recorded.cost_micros == 1000


def test_a_search_without_a_proxy_costs_nothing(fetch: Fetch, recorded: Recorded):
    with serve({"/": page("A")}) as site:
        search_pages("word", [site.url()], fetch, recorded, 0)
    assert recorded.cost_micros == 0


@pytest.mark.parametrize("urls", [[], ["http://a/"] * (MOST_URLS + 1), "http://a.example/"])
def test_a_search_of_no_or_too_many_pages_is_refused(
    urls: list[str], fetch: Fetch, recorded: Recorded
):
    with pytest.raises(InvalidValue, match="urls"):
        search_pages("word", urls, fetch, recorded, 500)
    assert recorded.cost_micros == 0


def test_a_site_is_examined_and_each_page_recorded(fetch: Fetch, recorded: Recorded):
    routes = {
        "/": page("Home", "a", "gone", "image"),
        "/a": page("A", "/", text="the word"),
        "/image": Reply(b"x", content_type="image/png"),
    }
    with serve(routes) as site:
        got = examine_site(site.url(), "word", 10, fetch, recorded)

    assert (got["pages_examined"], got["end"]) == (2, "no_more_pages")
    assert [match["title"] for match in got["matches"]] == ["A"]
    assert (got["match_count"], got["skipped_count"]) == (1, 2)
    assert [skipped["reason"] for skipped in got["skipped"]] == [
        "it answered 404",
        "its content type is 'image/png'",
    ]
    assert (recorded.quantity, recorded.subject) == (2, site.url())
    assert recorded.dimensions == {"skipped": "2", "end": "no_more_pages"}
    assert json.loads(json.dumps(got)) == got


def test_a_search_that_dies_half_way_has_recorded_how_far_it_came(fetch: Fetch, recorded: Recorded):
    with serve({"/": page("Home", "a", "b"), "/a": page("A"), "/b": page("B")}) as site:

        def dying(url: str, *_: object) -> Page:
            if url.endswith("/b"):
                raise KeyboardInterrupt
            return fetch(url)

        with pytest.raises(KeyboardInterrupt):
            examine_site(site.url(), "word", 10, dying, recorded)
    assert recorded.quantity == 2


def test_a_site_that_is_not_there_has_no_page_examined(fetch: Fetch, recorded: Recorded):
    with serve({}) as site, pytest.raises(BadStatusError):
        examine_site(site.url(), "word", 10, fetch, recorded)
    assert recorded.quantity == 0


@pytest.mark.parametrize("most", [0, -1, MOST_PAGES + 1, True, 2.0, "5", None])
def test_a_number_of_pages_that_cannot_be_asked_for_is_refused(
    most: int, fetch: Fetch, recorded: Recorded
):
    with pytest.raises(InvalidValue, match="max_pages"):
        check_max_pages(most)
    with pytest.raises(InvalidValue, match="max_pages"):
        examine_site("http://a.example/", "word", most, fetch, recorded)
