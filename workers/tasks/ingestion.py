"""The ingestion tasks as Celery runs them: which SKU each is sold as, and what it holds.

A task that fails is not retried by itself: each run costs the customer or us, so whoever submits it
decides. A failed fetch is a failed task, with the ``FetchError`` as its result.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from celery import current_app, current_task, shared_task

from billing.core.url_guard import FetchPolicy
from billing.settings import Settings
from workers.current_usage import usage
from workers.task import MeteredTask
from workers.tasks.bodies import (
    DEFAULT_MAX_PAGES,
    Result,
    capture,
    check_max_pages,
    examine_site,
    search_pages,
)
from workers.tasks.fetch import Fetcher
from workers.tasks.fetch_policy import policy_from


@functools.lru_cache(maxsize=8)
def _fetcher(policy: FetchPolicy) -> Fetcher:
    """One for each process and policy: it reads the certificate authorities once."""
    return Fetcher(policy)


@shared_task(base=MeteredTask, sku="page-capture", name="workers.tasks.capture_page")
def capture_page(url: str) -> Result:
    """Fetch one page; return its title, the size and SHA-256 of its text, and its first links."""
    return capture(url, _fetcher(policy_from(_settings())).fetch, usage.record)


@shared_task(base=MeteredTask, sku="premium-proxy-search", name="workers.tasks.proxy_search")
def proxy_search(query: str, urls: Sequence[str]) -> Result:
    """Search the given pages through the proxy, or directly where none is set.

    Every request through the proxy is recorded with ``proxy_cost_micros`` of the settings.
    """
    settings = _settings()
    policy = policy_from(settings, through_proxy=True)
    cost_micros = settings.proxy_cost_micros if policy.proxy_url else 0
    return search_pages(query, urls, _fetcher(policy).fetch, usage.record, cost_micros)


def pages_to_hold(seed_url: str, query: str, max_pages: int = DEFAULT_MAX_PAGES) -> int:  # noqa: ARG001 - it gets what the task gets
    """Count the pages a forensic search holds credits for.

    Raises:
        InvalidValue: It asks for too many, or for none.
    """
    return check_max_pages(max_pages)


@shared_task(
    base=MeteredTask,
    sku="forensic-search",
    hold_quantity=pages_to_hold,
    name="workers.tasks.forensic_search",
)
def forensic_search(seed_url: str, query: str, max_pages: int = DEFAULT_MAX_PAGES) -> Result:
    """Crawl the seed's site breadth-first and return the pages that have the query's words."""
    fetch = _fetcher(policy_from(_settings())).fetch
    return examine_site(seed_url, query, max_pages, fetch, usage.record)


def _settings() -> Settings:
    """The settings of the app that the running task belongs to."""
    # The task's own app: an eager one need not be the current one. Its ``metering`` is ours.
    task: Any = current_task  # a proxy: false where no task runs
    app: Any = task.app if task else current_app
    settings: Settings = app.metering.settings
    return settings
