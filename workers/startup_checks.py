"""Refuse to start a worker that cannot be right: the checks, pure, and their bootstep."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import structlog
from celery import bootsteps

from billing.container import ServerFacts
from billing.core.errors import ConfigurationError, WeighbridgeError
from billing.core.reservation import TIME_LIMIT_MARGIN_SECONDS
from billing.settings import Settings
from workers.task import MeteredTask

log = structlog.get_logger(__name__)

EX_CONFIG: Final = 78
"""The exit code for a configuration error (sysexits.h), so that a supervisor does not try again."""

_POOLS_WITH_TIME_LIMITS: Final = frozenset({"prefork", "gevent", "eventlet"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSetup:
    """The settings of one metered task that the checks look at."""

    name: str
    sku: str
    acks_late: bool
    time_limit: float | None
    soft_time_limit: float | None = None


def check_tasks(settings: Settings, tasks: Iterable[TaskSetup]) -> list[ConfigurationError]:
    """Check time limits against the hold's life and the broker's timeout; returns what is wrong."""
    found: list[ConfigurationError] = []
    for task in tasks:
        if not task.sku:
            found.append(
                ConfigurationError(
                    f"{task.name}.sku",
                    "a metered task without a SKU has no price",
                    'name it: @app.task(base=MeteredTask, sku="page-capture")',
                )
            )
        if task.time_limit is None:
            found.append(
                ConfigurationError(
                    f"{task.name}.time_limit",
                    "without a hard time limit a run can outlive its hold, and its credits be "
                    "spent twice",
                    "set task_time_limit (for example 600) or time_limit on the task",
                )
            )
            continue
        if task.soft_time_limit is not None and task.soft_time_limit >= task.time_limit:
            found.append(
                ConfigurationError(
                    f"{task.name}.soft_time_limit",
                    f"{task.soft_time_limit:g} s is not less than the hard time limit "
                    f"({task.time_limit:g} s): Celery starts the hard one's clock only after the "
                    "soft one, so a run could outlive its hold",
                    "lower the soft limit, or set none",
                )
            )
        least = task.time_limit + TIME_LIMIT_MARGIN_SECONDS
        if settings.hold_ttl_seconds <= least:
            found.append(
                ConfigurationError(
                    "WEIGHBRIDGE_HOLD_TTL_SECONDS",
                    f"{settings.hold_ttl_seconds} s is not more than the hard time limit of "
                    f"{task.name} ({task.time_limit:g} s) plus {TIME_LIMIT_MARGIN_SECONDS} s; a "
                    "hold could expire under a running task",
                    f"set it to more than {least:g}, or lower the time limit",
                )
            )
        if task.acks_late and task.time_limit >= settings.broker_consumer_timeout_seconds:
            found.append(
                ConfigurationError(
                    "WEIGHBRIDGE_BROKER_CONSUMER_TIMEOUT_SECONDS",
                    f"{task.name} may run {task.time_limit:g} s unacknowledged, but RabbitMQ "
                    f"closes the channel after {settings.broker_consumer_timeout_seconds} s and "
                    "delivers it again",
                    "raise consumer_timeout in rabbitmq.conf and this setting with it, or lower "
                    "the time limit",
                )
            )
    return found


def check_serializers(accepted: Iterable[str]) -> list[ConfigurationError]:
    """Check that only JSON is accepted: pickle would let a message run code."""
    others = sorted(set(accepted) - {"json", "application/json"})
    if not others:
        return []
    return [
        ConfigurationError(
            "accept_content",
            f"accepts {', '.join(others)} beside json",
            'set accept_content = ["json"]',
        )
    ]


def check_servers(facts: ServerFacts) -> list[ConfigurationError]:
    """Check that Redis evicts nothing and that PostgreSQL has this release's tables."""
    found: list[ConfigurationError] = []
    policy = facts.maxmemory_policy
    if policy is not None and policy != "noeviction":
        found.append(
            ConfigurationError(
                "maxmemory-policy",
                f"Redis is set to {policy}: when memory is short it would throw away balances, "
                "holds and events not yet billed",
                "set maxmemory-policy noeviction on the Redis of WEIGHBRIDGE_REDIS_URL",
            )
        )
    revision, head = facts.schema_revision, facts.schema_head
    if facts.database_answers and revision != head:
        found.append(
            ConfigurationError(
                "DATABASE_URL",
                f"its schema is at {revision or 'nothing'}, this release needs {head}",
                "run: billing migrate",
            )
        )
    return found


def show_no_variables() -> None:
    """Print tracebacks without the variables of their frames, unless structlog was configured.

    Those would be passwords in URLs, and the arguments of customers' tasks.
    """
    if structlog.is_configured():
        return
    for processor in structlog.get_config()["processors"]:
        if isinstance(processor, structlog.dev.ConsoleRenderer):
            processor.exception_formatter = structlog.dev.plain_traceback


class StartupCheckStep(bootsteps.StartStopStep):
    """Refuses to start a worker that would lose usage or overspend; warns where no limit holds."""

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        show_no_variables()
        problems = list(_problems(parent.app))
        for problem in problems:
            log.critical(
                "worker_refused_to_start",
                setting=problem.setting,
                problem=problem.problem,
                remedy=problem.remedy,
            )
        if problems:
            raise SystemExit(EX_CONFIG)
        pool = getattr(parent.pool_cls, "__module__", "").rpartition(".")[2]
        if pool not in _POOLS_WITH_TIME_LIMITS:
            log.warning(
                "pool_without_time_limits",
                pool=pool,
                money="a run that takes longer than its hold is charged from what is left then",
                remedy="use prefork, or raise WEIGHBRIDGE_HOLD_TTL_SECONDS above the longest run",
            )


def _problems(app: Any) -> Iterable[ConfigurationError]:
    metering = app.metering
    settings: Settings = metering.settings
    app.loader.import_default_modules()
    tasks = [
        TaskSetup(
            name=task.name,
            sku=task.sku,
            acks_late=bool(task.acks_late),
            time_limit=task.time_limit or app.conf.task_time_limit,
            soft_time_limit=task.soft_time_limit or app.conf.task_soft_time_limit,
        )
        for task in app.tasks.values()
        if isinstance(task, MeteredTask)
    ]
    yield from check_tasks(settings, tasks)
    yield from check_serializers(app.conf.accept_content)
    try:
        facts = metering.container.server_setup()
    except ConfigurationError as error:
        yield error
    except WeighbridgeError as error:
        log.warning("servers_not_checked", error=str(error))
    else:
        yield from check_servers(facts)
