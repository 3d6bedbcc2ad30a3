"""A whole system in memory, SKUs in one line, and a clock that is set by hand: for unit tests."""

from billing.testing import *  # noqa: F403 - the kit is defined there, once
