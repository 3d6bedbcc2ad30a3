from __future__ import annotations

from celery import Celery
from celery.app.events import Events

from billing.settings import Settings
from lab.bench.overhead_app import BARE, BILLED, LANES, make_bare_app, make_bench_app, task_of
from workers.task import MeteredTask


def test_the_billed_lanes_are_those_of_metered_tasks(settings: Settings):
    app = make_bench_app(settings)
    metered = [lane for lane in LANES if isinstance(task_of(app, lane), MeteredTask)]
    assert tuple(metered) == BILLED
    app.close()


def test_the_bare_app_has_no_weighbridge_in_it(settings: Settings):
    app = make_bare_app(settings)
    assert not hasattr(app, "metering")
    assert app.events_cls == Celery.events_cls
    assert type(app.events) is Events
    assert app.steps["worker"] == app.steps["consumer"] == set()
    assert not app.conf.broker_transport_options
    assert not isinstance(task_of(app, BARE), MeteredTask)
    app.close()


def test_both_are_configured_alike_but_for_confirms(settings: Settings):
    ours, bare = make_bench_app(settings), make_bare_app(settings)
    for name in (
        "task_acks_late",
        "worker_prefetch_multiplier",
        "worker_send_task_events",
        "task_serializer",
        "task_time_limit",
        "task_queues",
    ):
        assert str(getattr(bare.conf, name)) == str(getattr(ours.conf, name)), name
    ours.close()
    bare.close()
