"""The shipped Celery app: the ingestion tasks and beat's jobs, metered."""

from __future__ import annotations

from typing import Any, Final

from celery import Celery

from billing.server_urls import endpoints_of
from billing.settings import Settings
from workers.beat_schedule import BEAT_SCHEDULE
from workers.metering import Metering

COMMON_QUEUE: Final = str(Settings.model_fields["task_queue"].default)


def make_app(settings: Settings) -> Celery:
    """Make an app on the servers that ``settings`` name. Connects to nothing yet.

    Raises:
        ConfigurationError: A server is neither named nor running locally.
    """
    endpoints = endpoints_of(settings)
    app = Celery("weighbridge", broker=endpoints.amqp_url, backend=endpoints.result_url)
    app.conf.update(configuration(settings, endpoints.amqp_url or ""))
    app.conf.imports = (f"{__package__}.tasks.ingestion",)
    Metering(app, settings)
    return app


def configuration(settings: Settings, broker_url: str) -> dict[str, Any]:
    """Celery's settings for the shipped app; a good start for one of your own.

    Args:
        settings: Ours.
        broker_url: Celery's broker.
    """
    on_rabbitmq = broker_url.startswith("amqp")
    queue = settings.task_queue
    # Two apps on one broker would see each other's events and obey each other's commands; an app
    # with a queue of its own name has these under it too. With the common name they are Celery's
    # own, where every tool looks.
    apart = {"event_exchange": f"{queue}.events", "control_exchange": f"{queue}.control"}
    return {
        **({} if queue == COMMON_QUEUE else apart),
        # Only JSON: a pickled message would run code.
        "accept_content": ["json"],
        "task_serializer": "json",
        "result_serializer": "json",
        "result_expires": 86_400,
        "result_extended": True,
        # The message is acknowledged when the task is done and its usage is in the outbox.
        "task_acks_late": True,
        # A child that dies is retried, a bounded number of times, under the same task id and hold.
        "task_retry_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "task_time_limit": settings.task_time_limit_seconds,
        "task_soft_time_limit": settings.task_soft_time_limit_seconds,
        "task_default_queue": settings.task_queue,
        "broker_connection_retry_on_startup": True,
        # A task that is deferred is published again before the old message is acknowledged: without
        # a confirm it could be lost between the two. Over Redis, a message taken by a worker that
        # died comes back after the visibility timeout; it must outlast the longest task.
        "broker_transport_options": {"confirm_publish": True}
        if on_rabbitmq
        else {"visibility_timeout": settings.task_time_limit_seconds + 60},
        # Flower lives from these.
        "worker_send_task_events": True,
        "task_send_sent_event": True,
        "beat_schedule": BEAT_SCHEDULE,
        "timezone": "UTC",
    }
