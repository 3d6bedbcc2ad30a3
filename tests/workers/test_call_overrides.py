"""No way past the weighbridge: however a task's class is made, its body is metered or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pytest
from celery import Task, current_app, shared_task
from celery.app.trace import build_tracer
from celery.exceptions import Ignore, Retry
from memory_app import CREDIT, Bench, make_bench

from workers.billing_header import BillingHeader
from workers.current_usage import usage
from workers.errors import NotMetered
from workers.task import MeteredTask

Make = Callable[[Bench], Any]


class CallsRun(MeteredTask):
    """Its ``__call__`` goes to the body directly."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


class CallsSuper(MeteredTask):
    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


class CallsTask(MeteredTask):
    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return Task.__call__(self, *args, **kwargs)


class CallsRunMixin:
    run: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


class SilentMixin(CallsRunMixin):
    """Keeps what a class does when it is subclassed to itself."""

    def __init_subclass__(cls, **_: Any) -> None:
        """Does not call super()."""


class MixinFirst(CallsRunMixin, MeteredTask):
    abstract = True


class MixinLast(MeteredTask, CallsRunMixin):
    abstract = True


class SilentMixinFirst(SilentMixin, MeteredTask):
    abstract = True


class PlainTaskMixin(Task):
    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


class PlainTaskFirst(PlainTaskMixin, MeteredTask):
    abstract = True


class Deeper(CallsRun):
    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


def decorated(base: type, **options: Any) -> Make:
    def make(bench: Bench) -> Any:
        @bench.app.task(shared=False, base=base, sku="fixed", name="decorated", **options)
        def body(word: str) -> str:
            bench.ran.append(word)
            return word

        return body

    return make


def bound(bench: Bench) -> Any:
    @bench.app.task(shared=False, base=CallsRun, sku="fixed", name="bound", bind=True)
    def body(self: Any, word: str) -> str:
        assert self.request.id
        bench.ran.append(word)
        return word

    return body


def autoretried(bench: Bench) -> Any:
    @bench.app.task(
        shared=False, base=CallsRun, sku="fixed", name="autoretried", autoretry_for=(OSError,)
    )
    def body(word: str) -> str:
        bench.ran.append(word)
        return word

    return body


def of_a_class(bench: Bench) -> Any:
    class Registered(CallsRun):
        name = "registered"
        sku = "fixed"

        def run(self, word: str) -> str:
            bench.ran.append(word)
            return word

    return bench.app.register_task(Registered())


def body_in_call(bench: Bench) -> Any:
    class BodyInCall(MeteredTask):
        name = "body_in_call"
        sku = "fixed"

        def __call__(self, word: str) -> str:
            bench.ran.append(word)
            return word

    return bench.app.register_task(BodyInCall())


def under_a_registered_one(bench: Bench) -> Any:
    parent = of_a_class(bench).__class__

    class Child(parent):  # type: ignore[valid-type,misc]
        name = "child"

        def __call__(self, word: str) -> str:
            return str(self.run(word))

    return bench.app.register_task(Child())


def patched_later(bench: Bench) -> Any:
    class Patched(MeteredTask):
        name = "patched"
        sku = "fixed"

        def run(self, word: str) -> str:
            bench.ran.append(word)
            return word

    Patched.__call__ = CallsRunMixin.__call__  # type: ignore[method-assign]
    return bench.app.register_task(Patched())


def annotated(bench: Bench) -> Any:
    def past(_: Any) -> Any:
        return CallsRunMixin.__call__

    bench.app.conf.task_annotations = {"decorated": {"@__call__": past}}
    return decorated(MeteredTask)(bench)


VARIANTS = {
    "call goes to run": decorated(CallsRun),
    "call goes to super": decorated(CallsSuper),
    "call goes to Celery's own": decorated(CallsTask),
    "mixin before": decorated(MixinFirst),
    "mixin after": decorated(MixinLast),
    "mixin that keeps subclassing to itself": decorated(SilentMixinFirst),
    "plain task before": decorated(PlainTaskFirst),
    "super of a class that goes to run": decorated(Deeper),
    "bound": bound,
    "autoretried": autoretried,
    "class": of_a_class,
    "body in call": body_in_call,
    "under a registered one": under_a_registered_one,
    "patched after it was made": patched_later,
    "annotated": annotated,
    "no call of its own": decorated(MeteredTask),
}


def trace(bench: Bench, task: Any, *args: Any, **request: Any) -> Any:
    """Run a task as the tracer of a worker's child does."""
    header = BillingHeader("acme", bench.container.clock.now()).to_message()
    tracer = build_tracer(task.name, task, app=bench.app, propagate=True)
    message = {"id": "the-id", "headers": {"billing": header}, "delivery_info": {}, **request}
    return tracer("the-id", args, {}, message).retval


@pytest.fixture
def bench() -> Bench:
    return make_bench()


@pytest.fixture(params=["eager", "worker"])
def submit(request: pytest.FixtureRequest) -> Callable[..., None]:
    def eagerly(_: Bench, task: Any, *args: Any) -> None:
        task.bill_to("acme").delay(*args).get()

    def traced(bench: Bench, task: Any, *args: Any) -> None:
        trace(bench, task, *args)

    return eagerly if request.param == "eager" else traced


@pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS)
def test_a_run_is_charged_once_and_its_hold_is_closed(
    bench: Bench, make: Make, submit: Callable[..., None]
):
    task = make(bench)
    submit(bench, task, "x")

    assert bench.ran == ["x"]
    assert bench.lines == [("fixed", "succeeded", CREDIT)]
    assert bench.balance == (0, CREDIT, 99 * CREDIT)
    assert list(bench.container.quota.open_holds()) == []


@pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS)
def test_a_plain_call_is_not_a_run(bench: Bench, make: Make):
    if make is not bound:
        assert make(bench)("x") == "x"
    assert bench.lines == []


@pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS)
def test_a_body_without_its_hold_does_not_run(
    bench: Bench, make: Make, submit: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    task = make(bench)
    # As a before_start of its own that does not call super().
    monkeypatch.setattr(task.__class__, "before_start", lambda *_: None)

    with pytest.raises(NotMetered):
        submit(bench, task, "x")
    assert bench.ran == []
    assert bench.lines == []


def failing(base: type) -> Make:
    def make(bench: Bench) -> Any:
        @bench.app.task(shared=False, base=base, sku="fixed", name="failing_variant")
        def body() -> None:
            raise OSError("no")

        return body

    return make


@pytest.mark.parametrize("base", [CallsRun, CallsSuper, CallsTask, MixinFirst, MeteredTask])
def test_a_failed_run_gives_its_hold_back(bench: Bench, base: type, submit: Callable[..., None]):
    with pytest.raises(OSError, match="no"):
        submit(bench, failing(base)(bench))

    assert bench.lines == [("failed:fixed:1", "failed", 0)]
    assert bench.balance == (0, 0, 100 * CREDIT)


@pytest.mark.parametrize("base", [CallsRun, CallsSuper, MeteredTask])
def test_an_automatic_retry_keeps_its_hold(bench: Bench, base: type):
    @bench.app.task(
        shared=False, base=base, sku="fixed", name="flaky", autoretry_for=(OSError,),
        default_retry_delay=0, retry_backoff=False,
    )  # fmt: skip
    def flaky() -> str:
        bench.ran.append("flaky")
        if len(bench.ran) == 1:
            raise OSError("no")
        return "done"

    with suppress(Retry):
        flaky.bill_to("acme").delay().get()

    assert bench.ran == ["flaky", "flaky"]
    assert bench.lines == [("fixed", "succeeded", CREDIT)]
    assert bench.balance == (0, CREDIT, 99 * CREDIT)


@pytest.mark.parametrize("base", [CallsRun, CallsSuper, MeteredTask])
def test_a_replaced_run_hands_its_hold_over(bench: Bench, base: type):
    @bench.app.task(shared=False, base=base, sku="fixed", name="replaced_variant", bind=True)
    def replaced(self: Any) -> Any:
        return self.replace(bench.app.tasks["measured"].s(2, 4))

    with suppress(Ignore):
        replaced.bill_to("acme").delay()

    assert [line for line in bench.lines if line[1] == "succeeded"] == [
        ("measured", "succeeded", 2 * CREDIT)
    ]
    assert bench.balance == (0, 2 * CREDIT, 98 * CREDIT)


class Twice(MeteredTask):
    """Tries its body again within one run."""

    abstract = True
    again: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with suppress(OSError):
            super().__call__(*args, **kwargs)
        return super().__call__(*args, **kwargs) if self.again == "super" else self.run(*args)


@pytest.mark.parametrize("again", ["super", "run"])
@pytest.mark.parametrize("first_fails", [True, False])
def test_a_body_that_runs_twice_within_a_run_is_part_of_it(
    bench: Bench, again: str, first_fails: bool, submit: Callable[..., None]
):
    @bench.app.task(shared=False, base=Twice, sku="measured", name="twice", again=again)
    def twice() -> None:
        bench.ran.append("twice")
        usage.record(quantity=1)
        if first_fails and len(bench.ran) == 1:
            raise OSError("no")

    submit(bench, twice)

    assert bench.ran == ["twice", "twice"]
    assert bench.lines == [("measured", "succeeded", 2 * CREDIT)]
    assert bench.balance == (0, 2 * CREDIT, 98 * CREDIT)


class FailsAfter(MeteredTask):
    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        super().__call__(*args, **kwargs)
        raise OSError("afterwards")


def test_what_call_does_after_the_body_is_part_of_the_run(
    bench: Bench, submit: Callable[..., None]
):
    with pytest.raises(OSError, match="afterwards"):
        submit(bench, decorated(FailsAfter)(bench), "x")
    assert bench.lines == [("failed:fixed:1", "failed", 0)]
    assert bench.balance == (0, 0, 100 * CREDIT)


class FailsBefore(MeteredTask):
    abstract = True

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        super().before_start(task_id, args, kwargs)
        raise OSError("before")


def test_a_before_start_that_fails_after_the_hold_gives_it_back(
    bench: Bench, submit: Callable[..., None]
):
    with pytest.raises(OSError, match="before"):
        submit(bench, decorated(FailsBefore)(bench), "x")
    assert bench.ran == []
    assert bench.balance == (0, 0, 100 * CREDIT)


@pytest.mark.parametrize("base", [CallsRun, CallsSuper, MeteredTask])
def test_calling_itself_inside_a_run_is_not_another_run(
    bench: Bench, base: type, submit: Callable[..., None]
):
    @bench.app.task(shared=False, base=base, sku="fixed", name="itself")
    def itself(depth: int) -> int:
        bench.ran.append(str(depth))
        return depth and int(itself(depth - 1))

    submit(bench, itself, 2)

    assert bench.ran == ["2", "1", "0"]
    assert bench.lines == [("fixed", "succeeded", CREDIT)]
    assert bench.balance == (0, CREDIT, 99 * CREDIT)


@pytest.fixture
def as_current(bench: Bench) -> Iterator[Bench]:
    before = current_app._get_current_object()
    bench.app.set_current()
    yield bench
    before.set_current()


@pytest.mark.parametrize("bind", [True, False])
def test_a_shared_task_is_metered(as_current: Bench, bind: bool, submit: Callable[..., None]):
    def body(*args: Any) -> str:
        as_current.ran.append(str(args[-1]))
        return "ran"

    task = shared_task(base=CallsRun, sku="fixed", name=uuid4().hex, bind=bind, shared=False)(body)
    submit(as_current, as_current.app.tasks[task.name], "x")

    assert as_current.ran == ["x"]
    assert as_current.lines == [("fixed", "succeeded", CREDIT)]
    assert as_current.balance == (0, CREDIT, 99 * CREDIT)


def test_a_subclass_that_nobody_registered_is_metered_too(bench: Bench):
    parent = of_a_class(bench).__class__

    class Unregistered(parent):  # type: ignore[valid-type,misc]
        def __call__(self, word: str) -> str:
            return str(self.run(word))

    Unregistered().apply(("x",), customer="acme").get()

    assert bench.ran == ["x"]
    assert bench.lines == [("fixed", "succeeded", CREDIT)]
    assert bench.balance == (0, CREDIT, 99 * CREDIT)
