"""The composition root: the only place that builds adapters."""

from billing.bootstrap.reporting import Reporting
from billing.bootstrap.system import ServerFacts, System, endpoints_of

__all__ = ["Reporting", "ServerFacts", "System", "endpoints_of"]
