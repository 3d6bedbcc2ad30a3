"""An eager app with every kind of metered task, on a system in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from celery import Celery
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded

from billing.core.clock import SystemClock
from billing.core.sku import DenialPolicy, FailurePolicy, Pricing
from billing.settings import Settings
from billing.testing import MemorySystem, sku
from workers.current_usage import usage
from workers.metering import Metering
from workers.task import MeteredTask

CREDIT = 1_000_000


SKUS = [
    sku("fixed", price="1"),
    sku("extra", price="0.25", pricing=Pricing.MEASURED),
    sku("charging", price="1", failure_policy=FailurePolicy.CHARGE),
    sku("measured", price="1", pricing=Pricing.MEASURED, hold_quantity=10),
    sku("deferring", price="1", denial_policy=DenialPolicy.DEFER),
]


@dataclass
class Bench:
    """An app, its system, and where each body left its trace."""

    app: Celery
    container: MemorySystem
    ran: list[str]

    @property
    def lines(self) -> list[tuple[str, str, int]]:
        return [(e.line, e.outcome.value, e.amount_microcredits) for e in self.container.events]

    @property
    def balance(self) -> tuple[int, int, int]:
        account = self.container.quota.account("acme")
        assert account is not None
        return (
            account.held_microcredits,
            account.settled_microcredits,
            account.available_microcredits,
        )


def make_bench(
    credits: str = "100",  # noqa: A002 - the field's word
    settings: Settings | None = None,
) -> Bench:
    app = Celery("memory", set_as_current=False)
    app.conf.update(
        task_always_eager=True,
        task_store_eager_result=False,
        broker_url="memory://",
        result_backend="cache+memory://",
    )
    container = MemorySystem(
        skus=SKUS,
        credits={"acme": credits, "globex": credits},
        settings=settings,
        clock=SystemClock(),
    )
    Metering(app, settings or Settings(), build=lambda _: container)  # type: ignore[arg-type,return-value]
    bench = Bench(app, container, [])
    _tasks(bench)
    return bench


def _tasks(bench: Bench) -> None:  # noqa: C901 - a list of tasks, not a flow
    app, ran = bench.app, bench.ran

    @app.task(shared=False, base=MeteredTask, sku="fixed", name="fixed")
    def fixed(word: str = "x") -> str:
        ran.append(word)
        return word

    @app.task(shared=False, base=MeteredTask, sku="fixed", name="failing")
    def failing() -> None:
        usage.record(cost_micros=700)
        raise ValueError("no")

    @app.task(shared=False, base=MeteredTask, sku="charging", name="charging")
    def charging(how: str) -> None:
        raise {
            "exception": ValueError("no"),
            "ignore": Ignore(),
            "reject": Reject("no", requeue=False),
            "soft_time_limit": SoftTimeLimitExceeded(),
            "exit": SystemExit(3),
        }[how]

    @app.task(shared=False, base=MeteredTask, sku="measured", name="measured", hold_quantity=_most)
    def measured(pages: int, most: int) -> int:
        for _ in range(pages):
            usage.record(quantity=1, cost_micros=10, subject="site", dimensions={"depth": "1"})
        return pages + most - most

    @app.task(shared=False, base=MeteredTask, sku="fixed", name="two_skus")
    def two_skus() -> None:
        usage.record(sku="extra", quantity=3)

    @app.task(shared=False, base=MeteredTask, sku="fixed", name="calls_another")
    def calls_another() -> str:
        return str(fixed("inner"))

    @app.task(
        shared=False, base=MeteredTask, sku="fixed", name="retrying", bind=True, max_retries=3
    )
    def retrying(self: Any, times: int) -> int:
        ran.append(f"retry {self.request.retries}")
        usage.record(cost_micros=500)
        if self.request.retries < times:
            raise self.retry(countdown=0)
        return times

    @app.task(shared=False, base=MeteredTask, sku="fixed", name="replacing", bind=True)
    def replacing(self: Any) -> Any:
        return self.replace(measured.s(2, 4))

    @app.task(shared=False, name="plain")
    def plain(value: object) -> object:
        return value

    @app.task(shared=False, base=MeteredTask, sku="deferring", name="deferring")
    def deferring() -> str:
        ran.append("deferring")
        return "ran"

    @app.task(shared=False, base=MeteredTask, sku="nothing", name="no_such_sku")
    def no_such_sku() -> None:
        ran.append("no_such_sku")


def _most(pages: int, most: int) -> int:  # noqa: ARG001 - gets the task's arguments
    return most
