"""Crawling one site breadth-first, page by page, up to a number of pages. Does no I/O itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final
from urllib.parse import urlsplit

from billing.core.errors import InvalidValue
from workers.tasks.errors import FetchError, RefusedError
from workers.tasks.fetch import Page
from workers.tasks.page import check_query, normalise_url, parse, search

MAX_DEPTH: Final = 10
"""The most links between the seed and a page."""

ATTEMPTS_PER_PAGE: Final = 3
"""A site of broken links must end, too: so many fetches are tried for each page asked for."""


class CrawlEnd(StrEnum):
    """Why a crawl ended."""

    NO_MORE_PAGES = "no_more_pages"
    PAGE_LIMIT = "page_limit"
    ATTEMPT_LIMIT = "attempt_limit"


@dataclass(frozen=True, slots=True)
class Match:
    """A page that has every word of the query."""

    url: str
    title: str
    score: int
    snippets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A page that was not examined, and why."""

    url: str
    reason: str


@dataclass(frozen=True, slots=True)
class CrawlResult:
    """The findings of a crawl: ``matches`` with the best first, ``skipped`` in the order met."""

    pages_examined: int
    matches: tuple[Match, ...]
    skipped: tuple[Skipped, ...]
    end: CrawlEnd


def site_of(url: str) -> str:
    """The host, and the port if it is not the scheme's own: http and https are one site."""
    return urlsplit(url).netloc.lower()


def crawl(
    seed_url: str,
    query: str,
    max_pages: int,
    fetch: Callable[[str], Page],
    on_page: Callable[[str], None] | None = None,
) -> CrawlResult:
    """Examine up to ``max_pages`` pages of the seed's site, nearest first.

    A page counts as examined once it was fetched and read. One that cannot be fetched, that leads
    to another site, or that turns out to be one examined before, is skipped and does not count. The
    site is the seed's host, or the one that the seed itself redirects to.

    Args:
        seed_url: Where to begin.
        query: Words that a page must all have to match.
        max_pages: The most pages to examine, one or more.
        fetch: Fetches one page or raises ``FetchError``.
        on_page: Called with the URL of each page after it was examined.

    Raises:
        InvalidValue: No word to search for, or ``max_pages`` below one.
        FetchError: The seed itself cannot be fetched.
    """
    check_query(query)
    if max_pages < 1:
        raise InvalidValue("max_pages", max_pages, "ask for one page or more")
    seed = normalise_url(seed_url)
    if seed is None:
        raise RefusedError(seed_url, "it is not the URL of a page")
    page = fetch(seed)
    final = normalise_url(page.final_url) or seed
    run = _Crawl(query, max_pages, fetch, on_page, site_of(final), {seed, final})
    run.examine(page, final, depth=0)
    while (end := run.end()) is None:
        run.step()
    return run.result(end)


@dataclass(slots=True)
class _Crawl:
    """A crawl under way."""

    query: str
    max_pages: int
    fetch: Callable[[str], Page]
    on_page: Callable[[str], None] | None
    site: str
    seen: set[str]
    waiting: deque[tuple[str, int]] = field(default_factory=deque)
    matches: list[Match] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    examined: int = 0
    attempts: int = 1  # the seed

    def end(self) -> CrawlEnd | None:
        """Why to stop here, if so."""
        if self.examined == self.max_pages:
            return CrawlEnd.PAGE_LIMIT
        if not self.waiting:
            return CrawlEnd.NO_MORE_PAGES
        if self.attempts == self.max_pages * ATTEMPTS_PER_PAGE:
            return CrawlEnd.ATTEMPT_LIMIT
        return None

    def step(self) -> None:
        """Fetch the next page and examine or skip it."""
        self.attempts += 1
        url, depth = self.waiting.popleft()
        try:
            page = self.fetch(url)
        except FetchError as error:
            self.skipped.append(Skipped(url, error.reason))
            return
        final = normalise_url(page.final_url) or url
        if site_of(final) != self.site:
            self.skipped.append(Skipped(url, "it redirects to another site"))
        elif final != url and final in self.seen:
            self.skipped.append(Skipped(url, "it redirects to a page of this search"))
        else:
            self.seen.add(final)
            self.examine(page, final, depth)

    def examine(self, page: Page, url: str, depth: int) -> None:
        """Search the page, say so, and note where it leads."""
        parsed = parse(page.body, page.content_type, url)
        self.examined += 1
        found = search(f"{parsed.title} {parsed.text}", self.query)
        if found.score:
            self.matches.append(Match(url, parsed.title, found.score, found.snippets))
        if self.on_page is not None:
            self.on_page(url)
        if depth < MAX_DEPTH:
            self._note(parsed.links, depth + 1)

    def _note(self, links: tuple[str, ...], depth: int) -> None:
        # More than can still be tried need not be remembered.
        room = self.max_pages * ATTEMPTS_PER_PAGE - self.attempts
        for link in links:
            if len(self.waiting) >= room:
                return
            if link not in self.seen and site_of(link) == self.site:
                self.seen.add(link)
                self.waiting.append((link, depth))

    def result(self, end: CrawlEnd) -> CrawlResult:
        """The result so far. The sort is stable: among equals, the nearest to the seed is first."""
        best_first = tuple(sorted(self.matches, key=lambda match: -match.score))
        return CrawlResult(self.examined, best_first, tuple(self.skipped), end)
