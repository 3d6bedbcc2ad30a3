"""Without pyarrow a command says which extra to install."""

from __future__ import annotations

import sys

import pytest

from billing.container.audit_services import load_archive_classes
from billing.core.errors import ConfigurationError

ARCHIVE_MODULES = ("archived_month", "exporter", "parquet_files", "restorer")


def test_without_pyarrow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    for name in ARCHIVE_MODULES:
        monkeypatch.delitem(sys.modules, f"billing.archive.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigurationError, match=r"pip install \"weighbridge\[archive\]\""):
        load_archive_classes()
