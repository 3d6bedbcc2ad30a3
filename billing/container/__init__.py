"""The composition root: the only place that builds adapters."""

from billing.container.container import Container, ServerFacts, endpoints_of
from billing.container.reporting_services import ReportingServices

__all__ = ["Container", "ReportingServices", "ServerFacts", "endpoints_of"]
