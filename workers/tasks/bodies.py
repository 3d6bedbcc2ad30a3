"""The bodies of the ingestion tasks, apart from Celery: fetch, read, search, record the usage."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from billing.core.errors import InvalidValue
from workers.tasks.crawl import Match, Skipped, crawl
from workers.tasks.errors import FetchError, without_credentials
from workers.tasks.fetch import Page
from workers.tasks.page import check_query, parse, search

DEFAULT_MAX_PAGES: Final = 25
MOST_PAGES: Final = 1_000
MOST_URLS: Final = 20
"""In one premium search. At 20 seconds each they end within the soft time limit."""

_MAX_LINKS: Final = 20
_MAX_MATCHES: Final = 50
_MAX_SKIPPED: Final = 50
_MAX_TITLE: Final = 500

Result = dict[str, Any]
"""The result of a task; JSON."""


class RecordUsage(Protocol):
    """``workers.current_usage.usage.record``, as far as ingestion uses it."""

    def __call__(
        self,
        *,
        quantity: int | None = None,
        cost_micros: int | None = None,
        subject: str | None = None,
        dimensions: Mapping[str, str] | None = None,
    ) -> None:
        """Add to what the running task used."""
        ...


class Fetch(Protocol):
    """``Fetcher.fetch``."""

    def __call__(self, url: str, on_request: Callable[[], None] = ...) -> Page:
        """Fetch one page."""
        ...


def capture(url: str, fetch: Fetch, record: RecordUsage) -> Result:
    """Fetch one page and say what is on it. Subject: its final URL.

    Raises:
        FetchError: The page cannot be fetched.
    """
    record(subject=without_credentials(url))
    page = fetch(url)
    record(subject=page.final_url, dimensions={"bytes": str(len(page.body))})
    parsed = parse(page.body, page.content_type, page.final_url)
    return {
        "url": url,
        "final_url": page.final_url,
        "title": parsed.title[:_MAX_TITLE],
        "text_characters": len(parsed.text),
        "text_sha256": hashlib.sha256(parsed.text.encode()).hexdigest(),
        "links": list(parsed.links[:_MAX_LINKS]),
        "truncated": parsed.truncated,
    }


def search_pages(
    query: str, urls: Sequence[str], fetch: Fetch, record: RecordUsage, proxy_cost_micros: int
) -> Result:
    """Search the given pages for the words of a query. Subject: the query.

    Each request is recorded with its cost as soon as it went out, so a page that then fails has its
    cost recorded, too. One page that cannot be fetched does not stop the others.

    Args:
        query: Words that a page must all have to match.
        urls: The pages, one or more; a repeated one is fetched once.
        fetch: Fetches one page.
        record: Where usage goes.
        proxy_cost_micros: What one request costs us; 0 where no proxy is used.

    Raises:
        InvalidValue: Nothing to search for, or no or too many pages.
        FetchError: Not one of the pages could be fetched; the last one's reason.
    """
    check_query(query)
    if isinstance(urls, str) or not 1 <= len(urls) <= MOST_URLS:
        raise InvalidValue("urls", urls, f"give a list of 1 to {MOST_URLS} URLs")
    record(subject=query, dimensions={"urls": str(len(urls))})

    def on_request() -> None:
        if proxy_cost_micros:
            record(cost_micros=proxy_cost_micros)

    matches: list[Match] = []
    failures: list[FetchError] = []
    wanted = list(dict.fromkeys(urls))
    for url in wanted:
        try:
            page = fetch(url, on_request)
        except FetchError as error:
            failures.append(error)
            continue
        parsed = parse(page.body, page.content_type, page.final_url)
        found = search(f"{parsed.title} {parsed.text}", query)
        if found.score:
            matches.append(Match(page.final_url, parsed.title, found.score, found.snippets))
    if len(failures) == len(wanted):
        raise failures[-1]
    matches.sort(key=lambda match: -match.score)
    return {
        "query": query,
        "pages_searched": len(wanted) - len(failures),
        "matches": [_match(match) for match in matches],
        "failures": [{"url": error.url, "reason": error.reason} for error in failures],
    }


def check_max_pages(max_pages: object) -> int:
    """``max_pages`` if so many pages can be asked for; it is also how many are held.

    Raises:
        InvalidValue: Not an integer between 1 and ``MOST_PAGES``.
    """
    if type(max_pages) is not int or not 1 <= max_pages <= MOST_PAGES:  # bool is an int, too
        raise InvalidValue("max_pages", max_pages, f"ask for 1 to {MOST_PAGES} pages")
    return max_pages


def examine_site(
    seed_url: str, query: str, max_pages: int, fetch: Fetch, record: RecordUsage
) -> Result:
    """Crawl a site for the words of a query. Subject: the seed; quantity: pages examined.

    Each page is recorded as soon as it was examined: a search that dies half-way has done so many.

    Raises:
        InvalidValue: Nothing to search for, or a number of pages that cannot be asked for.
        FetchError: The seed itself cannot be fetched.
    """
    check_max_pages(max_pages)
    record(quantity=0, subject=without_credentials(seed_url))
    result = crawl(seed_url, query, max_pages, fetch, lambda _url: record(quantity=1))
    record(dimensions={"skipped": str(len(result.skipped)), "end": result.end.value})
    return {
        "seed_url": seed_url,
        "query": query,
        "pages_examined": result.pages_examined,
        "end": result.end.value,
        "match_count": len(result.matches),
        "matches": [_match(match) for match in result.matches[:_MAX_MATCHES]],
        "skipped_count": len(result.skipped),
        "skipped": [_skipped(skipped) for skipped in result.skipped[:_MAX_SKIPPED]],
    }


def _match(match: Match) -> Result:
    return {
        "url": match.url,
        "title": match.title[:_MAX_TITLE],
        "score": match.score,
        "snippets": list(match.snippets),
    }


def _skipped(skipped: Skipped) -> Result:
    return {"url": skipped.url, "reason": skipped.reason}
