"""The site that the demo reads: pydoc's documentation server, with a log of what was asked for.

Run as a script by an interpreter without site-packages (``python -I -S site.py``), so that the
pages are the standard library's and nothing else; it imports nothing but the standard library.
``python -m pydoc -p`` runs the same server, but waits for commands at a prompt and logs nothing.
"""

from __future__ import annotations

import argparse
import functools
import os
import pydoc
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The server of `python -m pydoc -p` and what writes its pages. They are not public, and have been
# the same since CPython 3.2; typeshed does not know them.
_serve: Callable[..., Any] = getattr(pydoc, "_start_server")  # noqa: B009 - as above
_pages: Callable[[str, str], str] = getattr(pydoc, "_url_handler")  # noqa: B009 - as above

UNSERVED = frozenset({"antigravity", "idlelib", "lib2to3", "test", "this", "tkinter", "turtledemo"})
"""Modules that do something when imported (open a browser, a window, run tests) or print poetry."""


def is_served(path: str) -> bool:
    """Whether the page of that path can be written without side effects.

    Args:
        path: Of the request, without its query, such as ``/xml.sax.html``.
    """
    name = path.strip("/").removesuffix(".html")
    return "__main__" not in name and name.partition(".")[0] not in UNSERVED


def page(path: str, content_type: str, log: Callable[[str], None]) -> str:
    """The page for a request's path. Its query tells requests apart and is otherwise ignored.

    Args:
        path: Path and query as requested.
        content_type: ``text/css`` or ``text/html``, as pydoc decides by the path.
        log: Takes the path as requested.
    """
    log(path)
    plain = path.partition("?")[0]
    if not is_served(plain):
        return "<html><head><title>not served</title></head><body>Not served here.</body></html>"
    return written(plain, content_type)


@functools.cache
def written(path: str, content_type: str) -> str:
    """The page of a path, written once: a page of ``ast`` takes half a second of a core."""
    return str(_pages(path, content_type))


def main() -> None:
    """Serve until ended; writes the URL into a file once it answers."""
    parser = argparse.ArgumentParser(description="pydoc's documentation server, with a log")
    parser.add_argument("--announce", type=Path, required=True, help="file that gets the URL")
    parser.add_argument("--access-log", type=Path, required=True, help="file that gets every path")
    chosen = parser.parse_args()
    # What a documented module starts while it is imported must find no display and no browser.
    os.environ["BROWSER"] = "true"
    with chosen.access_log.open("a", buffering=1) as access_log:
        lock = threading.Lock()

        def log(path: str) -> None:
            with lock:
                access_log.write(f"{path}\n")

        server = _serve(lambda path, content_type: page(path, content_type, log), "127.0.0.1", 0)
        if server.error:
            sys.exit(f"the documentation server did not start: {server.error}")
        draft = chosen.announce.with_suffix(".new")
        draft.write_text(server.url)
        draft.replace(chosen.announce)
        server.join()


if __name__ == "__main__":
    main()
