"""The metered tasks of a run: each says aloud what it did, in the run's file of truth.

Every one is there twice: sold exactly (``chaos.page``), and where its SKU has a leased twin under
that one as well (``chaos.leased.page``).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Any, Final, cast

from lab.chaos import truth
from lab.chaos.catalogue import FIXED, LEASED_PREFIX
from lab.chaos.truth import NONE, Note, Word
from workers.current_usage import usage
from workers.task import MeteredTask

TIME_LIMIT_SECONDS: Final = 5
RUN: Final = "_chaos_run"
"""Where a request keeps the id of its run."""
EXACT: Final = "chaos."
LEASED: Final = "chaos.leased."
_BURN_ROUNDS: Final = 60_000_000


class Told(MeteredTask):
    """A metered task that notes its runs in the run's file of truth."""

    abstract = True
    default_retry_delay = 1
    # A child that dies is retried under the same id; the nemesis kills many.
    max_retries = 50

    def note(self, word: Word, detail: str = NONE) -> None:
        """Write down what this run came to."""
        request: Any = self.request
        run = getattr(request, RUN, NONE)
        truth.write(cast("Any", self.app).chaos_truth, Note(word, str(request.id), run, detail))

    def use(self, word: Word, used: Mapping[str, int]) -> None:
        """Record usage with Weighbridge and in the file of truth: the last act of a body."""
        own = self.sku
        for sku, quantity in used.items():
            if sku != own:
                usage.record(quantity=quantity, sku=sku)
            elif own not in FIXED:
                usage.record(quantity=quantity)
        self.note(word, truth.told(used))

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Note a run that was admitted from a lease: its process alone knows of it."""
        super().before_start(task_id, args, kwargs)
        if self._is_leased():
            self.note(Word.LEASED)

    def on_success(self, *_: Any) -> None:
        """Note that the run is settled, which it is by then: it cannot be lost any more."""
        self.note(Word.SETTLED)

    def _is_leased(self) -> bool:
        run = getattr(self.request, "_weighbridge_run", None)
        return run is not None and run.admission.from_lease is not None


def register(app: Any) -> None:
    """Give the app all of them."""
    for prefix, skus in ((EXACT, ""), (LEASED, LEASED_PREFIX)):
        _that_succeed(app, prefix, skus)
        _that_fail(app, prefix, skus)
        _that_do_not_end(app, prefix, skus)
    _that_wait(app)


def _that_succeed(app: Any, prefix: str, skus: str) -> None:
    page_sku, pages_sku = skus + "page", skus + "pages"

    @app.task(shared=False, base=Told, sku=page_sku, name=prefix + "page", bind=True)
    def page(self: Any, seconds: float = 0.0, *_: Any) -> str:
        time.sleep(seconds)
        usage.record(cost_micros=100)
        self.use(Word.ENDED, {page_sku: 1})
        return "done"

    @app.task(shared=False, base=Told, sku=pages_sku, name=prefix + "pages", bind=True)
    def pages(self: Any, count: int, extra: int = 0) -> int:
        self.use(Word.ENDED, {pages_sku: count} | ({"extra": extra} if extra else {}))
        return count

    @app.task(shared=False, base=Told, sku=page_sku, name=prefix + "again", bind=True)
    def again(self: Any) -> str:
        if not self.request.retries:
            raise self.retry(countdown=0.2)
        self.use(Word.ENDED, {page_sku: 1})
        return "done"


def _that_fail(app: Any, prefix: str, skus: str) -> None:
    tried_sku = skus + "tried"

    @app.task(shared=False, base=Told, sku=skus + "page", name=prefix + "fails", bind=True)
    def fails(self: Any) -> None:  # noqa: ARG001 - bound, as all are
        raise ValueError("as planned")

    @app.task(shared=False, base=Told, sku=tried_sku, name=prefix + "tried", bind=True)
    def tried(self: Any, count: int) -> None:
        self.use(Word.USED, {tried_sku: count})
        raise ValueError("as planned, and charged")


def _that_do_not_end(app: Any, prefix: str, skus: str) -> None:
    page_sku = skus + "page"

    @app.task(shared=False, base=Told, sku=page_sku, name=prefix + "loops", bind=True)
    def loops(self: Any) -> None:
        deadline = time.monotonic() + 2 * TIME_LIMIT_SECONDS
        while time.monotonic() < deadline:
            time.sleep(0.01)
        self.use(Word.ENDED, {page_sku: 1})

    @app.task(shared=False, base=Told, sku=page_sku, name=prefix + "burns", bind=True)
    def burns(self: Any) -> None:
        # One call into C that no signal handler can interrupt.
        hashlib.pbkdf2_hmac("sha256", b"p", b"s", _BURN_ROUNDS)
        self.use(Word.ENDED, {page_sku: 1})


def _that_wait(app: Any) -> None:
    @app.task(shared=False, base=Told, sku="later", name="chaos.later", bind=True)
    def later(self: Any) -> str:
        self.use(Word.ENDED, {"later": 1})
        return "done"


__all__ = ["EXACT", "LEASED", "RUN", "TIME_LIMIT_SECONDS", "Told", "register"]
