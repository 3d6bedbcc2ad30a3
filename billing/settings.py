"""Settings: the only reader of the environment.

``docs/configuration.md`` is generated from this module (``make docs``).
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

Seconds = Annotated[int, Field(gt=0)]


def _plain(name: str) -> AliasChoices:
    """Servers are named as everybody names them; the prefixed name wins where both are set."""
    return AliasChoices(f"WEIGHBRIDGE_{name}", name)


class Settings(BaseSettings):
    """What an operator can set. Every name has the prefix ``WEIGHBRIDGE_`` but the server URLs."""

    model_config = SettingsConfigDict(
        env_prefix="WEIGHBRIDGE_", extra="ignore", frozen=True, populate_by_name=True
    )

    database_url: SecretStr | None = Field(
        default=None,
        validation_alias=_plain("DATABASE_URL"),
        description="PostgreSQL (15 or newer), as postgresql://user:password@host/database. "
        "Unset: the embedded one, where it is installed.",
    )
    database_read_url: SecretStr | None = Field(
        default=None,
        description="A streaming replica of the same PostgreSQL, for totals, receipts and exports. "
        "While it does not answer, and where unset, the primary answers them.",
    )
    redis_url: SecretStr | None = Field(
        default=None,
        validation_alias=_plain("REDIS_URL"),
        description="Redis (7 or newer) or Valkey (8 or newer) for quota and outbox; a database of "
        "its own with maxmemory-policy noeviction. A cluster: "
        "redis+cluster://user:password@host:port,host:port (rediss+cluster:// for TLS). "
        "Unset: the embedded Valkey.",
    )
    amqp_url: SecretStr | None = Field(
        default=None,
        validation_alias=_plain("AMQP_URL"),
        description="RabbitMQ (3.10 or newer); the nodes of a cluster separated by ;. "
        "Unset: a local one, else a private node, else Kombu's Redis transport.",
    )
    result_url: SecretStr | None = Field(
        default=None,
        validation_alias=_plain("RESULT_URL"),
        description="Celery's result backend. Unset: database 1 of the Redis server, "
        "so that results never share a database with balances.",
    )
    local_dir: Path = Field(
        default=Path(".local"), description="Where embedded servers keep data, logs and sockets."
    )
    redis_prefix: str = Field(default="wb", description="First part of every Redis key.")
    usage_exchange: str = Field(
        default="usage", description="Durable topic exchange of usage events."
    )
    usage_queue: str = Field(
        default="usage.log", description="Quorum queue that the consumer reads."
    )
    task_queue: str = Field(default="ingestion", description="Celery's default queue.")
    currency: str = Field(
        default="USD",
        pattern="^[A-Z]{3}$",
        description="Currency of provider costs and credit value.",
    )
    credit_value: str = Field(
        default="0.01",
        pattern=r"^\d{1,9}(\.\d{1,12})?$",
        description="What one credit is worth, a decimal string in the currency; for margins only.",
    )
    spool_dir: Path = Field(
        default=Path(".local/spool"),
        description="The node's journal and spool of usage events; on a local disk that survives a "
        "restart of the worker.",
    )
    hold_ttl_seconds: Seconds = Field(
        default=2100,
        description="How long a hold stays open. More than the hard time limit plus 30 s.",
    )
    hold_record_ttl_seconds: Seconds = Field(
        default=259_200,
        description="How long an ended hold is remembered, so that a repeat is known as one. "
        "Longer than any redelivery can take; 320 to 344 bytes of Redis each (measured).",
    )
    lease_seconds: Annotated[int, Field(ge=1, le=30)] = Field(
        default=3,
        description="How long a process admits tasks of a leased SKU before it asks Redis again: "
        "the longest that a suspension goes unnoticed there. Less than the quarantine.",
    )
    lease_sync: bool = Field(
        default=True,
        description="Whether a leased run's usage is on the node's disk before its task is "
        "acknowledged. False: the system keeps it, which outlives every process; a machine that "
        "loses its power loses what was acknowledged in the last half second.",
    )
    quarantine_seconds: int = Field(
        default=5,
        ge=0,
        description="How long a balance is not rebuilt after Redis lost its data, so that events "
        "on their way reach the log first.",
    )
    redis_timeout_ms: Annotated[int, Field(gt=0)] = Field(
        default=250, description="The longest wait for one answer of Redis in a task."
    )
    parent_redis_timeout_ms: Annotated[int, Field(gt=0)] = Field(
        default=50,
        description="The same in the worker's main process, which must not be held up.",
    )
    relay_in_worker: bool = Field(
        default=True,
        description="Whether every worker also relays the outbox; false leaves it to "
        "billing relay.",
    )
    publish_timeout_seconds: Seconds = Field(
        default=5, description="The longest wait for RabbitMQ to take or confirm a batch of events."
    )
    broker_consumer_timeout_seconds: Seconds = Field(
        default=1800,
        description="RabbitMQ's consumer_timeout; a task running longer unacknowledged is lost. "
        "Weighbridge cannot read it over AMQP: set both together.",
    )
    task_time_limit_seconds: Seconds = Field(
        default=600, description="Hard time limit of the shipped app's tasks."
    )
    task_soft_time_limit_seconds: Seconds = Field(
        default=570, description="Soft time limit of the shipped app's tasks."
    )
    defer_seconds: Seconds = Field(
        default=30,
        description="How long a deferred task waits before it asks again (plus up to a fifth).",
    )
    max_deferrals: Annotated[int, Field(ge=0)] = Field(
        default=2880, description="How often a task is deferred before it fails as denied."
    )
    catalog_ttl_seconds: Seconds = Field(
        default=30, description="How old a process's copy of SKUs and prices may be."
    )
    relay_batch: Annotated[int, Field(gt=0, le=2000)] = Field(
        default=500, description="Events the relay publishes before it waits for their confirms."
    )
    relay_lease_seconds: Annotated[int, Field(gt=0, le=600)] = Field(
        default=10,
        description="How long what a relay was sending waits when it dies, until another takes it.",
    )
    consumer_batch: Annotated[int, Field(gt=0, le=10_000)] = Field(
        default=4000,
        description="The most events in one transaction of the consumer. Of messages it takes "
        "at most 1,000, each of which may hold several events.",
    )
    consumer_linger_ms: Annotated[int, Field(ge=0)] = Field(
        default=100, description="How long the consumer waits for a batch to fill."
    )
    event_max_age_days: Annotated[int, Field(gt=0)] = Field(
        default=90, description="Older events become dead letters (too_old)."
    )
    event_max_ahead_seconds: Annotated[int, Field(ge=0)] = Field(
        default=300, description="Events further in the future become dead letters (in_the_future)."
    )
    partitions_ahead_months: Annotated[int, Field(ge=1)] = Field(
        default=3, description="How many months ahead partitions of the log exist."
    )
    archive_dir: Path = Field(
        default=Path(".local/archive"),
        description="Where archived months are, for whoever archives them or asks for their "
        "receipts: storage that all of these see, is backed up, and outlives every node.",
    )
    fetch_allow_networks: str = Field(
        default="",
        description="Networks, comma-separated CIDR, that ingestion tasks may fetch from although "
        "they are not public. Empty: public addresses only.",
    )
    fetch_ports: str = Field(
        default="80,443", description="Ports that ingestion tasks may fetch from; * for all."
    )
    fetch_timeout_seconds: Seconds = Field(
        default=20, description="The longest one fetch may take in all."
    )
    fetch_max_bytes: Annotated[int, Field(gt=0)] = Field(
        default=5_000_000, description="The largest page, decompressed."
    )
    proxy_url: SecretStr | None = Field(
        default=None, description="HTTP proxy of premium searches. Unset: direct."
    )
    proxy_cost_micros: Annotated[int, Field(ge=0)] = Field(
        default=500,
        description="What one request through the proxy costs, in millionths of the currency.",
    )
    reconcile_repairs: bool = Field(
        default=True,
        description="Whether the hourly check of the books also puts right what a rule can; "
        "false: it only tells.",
    )
    provider: str = Field(
        default="",
        pattern="^(|ledger|stripe|file)$",
        description="Who gets usage: ledger (PostgreSQL alone), stripe or file. "
        "Unset: stripe where STRIPE_API_KEY is set, else ledger.",
    )
    environment: str = Field(
        default="main",
        pattern="^[a-z0-9-]{1,20}$",
        description="This installation's name in the provider's meters and identifiers; two that "
        "report to one account need two names. Never changed once usage was reported.",
    )
    stripe_api_key: SecretStr | None = Field(
        default=None,
        validation_alias=_plain("STRIPE_API_KEY"),
        description="Stripe's secret key; one of test mode (sk_test_...) unless STRIPE_LIVE=yes.",
    )
    stripe_api_base: str = Field(
        default="",
        validation_alias=_plain("STRIPE_API_BASE"),
        description="Another address than Stripe's for all of its API, such as a local Stripe: "
        "http://127.0.0.1:12111.",
    )
    stripe_webhook_secret: SecretStr | None = Field(
        default=None,
        validation_alias=_plain("STRIPE_WEBHOOK_SECRET"),
        description="The signing secret (whsec_...) of the webhook destination; several, separated "
        "by commas, while a secret is replaced or where thin and snapshot events come from two.",
    )
    stripe_live: bool = Field(
        default=False,
        validation_alias=_plain("STRIPE_LIVE"),
        description="yes: a live key may be used, and real customers are billed.",
    )
    report_dir: Path = Field(
        default=Path(".local/reports"), description="Where the file provider writes."
    )
    report_lag_seconds: Seconds = Field(
        default=300,
        description="How long after its end an hour is reported; what comes later is a revision.",
    )
    report_rate: Annotated[float, Field(gt=0, le=1000)] = Field(
        default=50.0, description="The most reports a second; Stripe's test mode allows 25."
    )
    report_senders: Annotated[int, Field(gt=0, le=64)] = Field(
        default=8, description="How many reports are under way at once."
    )
    api_address: str = Field(
        default="127.0.0.1", description="Address that billing api listens on."
    )
    api_port: Annotated[int, Field(gt=0, le=65535)] = Field(
        default=8010, description="Port that billing api listens on."
    )
    flower_basic_auth: SecretStr | None = Field(
        default=None, description="Flower's user:password. Flower does not start without it."
    )
    flower_address: str = Field(default="127.0.0.1", description="Address that Flower listens on.")
    flower_port: Annotated[int, Field(gt=0, le=65535)] = Field(
        default=5555, description="Port that Flower listens on."
    )
    log_level: str = Field(default="INFO", description="Level of structured logs.")
    failpoints: str = Field(
        default="",
        description="For tests only: places to die at, NAME=COUNT, comma-separated; "
        "NAME=COUNT! kills the whole process group.",
    )

    @property
    def provider_name(self) -> str:
        """The provider that gets usage now."""
        return self.provider or ("stripe" if self.stripe_api_key else "ledger")

    @property
    def node(self) -> str:
        """This machine's name, for leases and logs."""
        return socket.gethostname()
