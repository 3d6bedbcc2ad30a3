"""The composition root: the only place that builds adapters."""

from billing.container.container import ServerFacts, System, endpoints_of
from billing.container.reporting_services import Reporting

__all__ = ["Reporting", "ServerFacts", "System", "endpoints_of"]
