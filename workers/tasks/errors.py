"""Why a page could not be fetched: one class per reason, and no other.

Every one is made from ``(url, reason)`` and keeps exactly these two texts in ``args``, so it
survives Celery's JSON result serializer: whoever asks for the result gets the same class with the
same words.
"""

from __future__ import annotations

import re
from typing import Final

from billing.core.errors import WeighbridgeError

_MAX_TEXT: Final = 500
_USERINFO: Final = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*:)?//[^/?#]*@")


def without_credentials(url: str) -> str:
    """``url`` without a user name and password, fit for logs and receipts."""
    return _USERINFO.sub(r"\1//", url)


class FetchError(WeighbridgeError):
    """The page could not be fetched.

    ``url`` is the address concerned (of a redirected fetch: the one reached last), without user
    name and password; ``reason`` says what was wrong with it, without naming an address inside the
    network.
    """

    def __init__(self, url: str, reason: str) -> None:
        self.url = without_credentials(url)[:_MAX_TEXT]
        self.reason = reason[:_MAX_TEXT]
        super().__init__(f"{self.url}: {self.reason}")
        self.args = (self.url, self.reason)

    def __str__(self) -> str:
        return f"{self.url}: {self.reason}"


class RefusedError(FetchError):
    """The guard does not let anybody go there. Nothing was sent."""


class UnreachableError(FetchError):
    """The name, the connection, the certificate or the answer's form failed."""


class TooSlowError(FetchError):
    """The whole fetch took longer than the policy allows."""


class TooLargeError(FetchError):
    """The page has more bytes, compressed or not, than the policy allows."""


class TooManyRedirectsError(FetchError):
    """The page was redirected more often than the policy allows."""


class BadStatusError(FetchError):
    """The server answered with something other than success."""


class NotHtmlError(FetchError):
    """The answer is not a page that can be read: another content type, or a broken encoding."""
