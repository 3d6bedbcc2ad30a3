"""Fixtures of a log with its seals."""

from log_fixtures import attic, bench, catalogue, make_writer, somebody_waits, writer, writers  # noqa: F401
