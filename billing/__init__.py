"""Weighbridge: usage-based billing for Celery. The engine; it knows nothing of Celery."""

__version__ = "0.1.0"
