"""``billing metrics``: the figures of ``GET /metrics``, for who does not run the API."""

from __future__ import annotations

import sys

import typer

from billing.cli.context import container_of
from billing.health.prometheus import exposition


def metrics(context: typer.Context) -> None:
    """Print figures for whoever watches, in Prometheus' text format.

    The same as GET /metrics of billing api; for node_exporter's textfile collector, or to look.
    """
    sys.stdout.write(exposition(container_of(context)).decode())
