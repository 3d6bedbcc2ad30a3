"""The composition root: the only place that builds adapters."""

from billing.container.connections import ServerFacts
from billing.container.container import Container
from billing.container.reporting_services import ReportingServices

__all__ = ["Container", "ReportingServices", "ServerFacts"]
