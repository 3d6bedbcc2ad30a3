"""Write docs/configuration.md from billing/settings.py (``make docs``); --check compares only."""  # noqa: INP001 - a script

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from billing.settings import Settings

TARGET: Final = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
_HEADER: Final = """\
# Configuration

Made from `billing/settings.py` by `make docs`; change it there. Everything is an environment
variable. Where two names are given, the first wins if both are set.

| Variable | Default | What it is |
|---|---|---|
"""


def names(field: str, info: FieldInfo) -> str:
    """The variables of a setting."""
    if isinstance(info.validation_alias, AliasChoices):
        return ", ".join(f"`{choice}`" for choice in info.validation_alias.choices)
    return f"`WEIGHBRIDGE_{field.upper()}`"


def default(info: FieldInfo) -> str:
    """Its default, as one would write it into the environment."""
    if info.default is None or info.default == "":
        return "unset"
    shown = str(info.default).lower() if isinstance(info.default, bool) else str(info.default)
    return f"`{shown}`"


def page() -> str:
    """The whole page."""
    rows = [
        " | ".join(["", names(field, info), default(info), _cell(info.description), ""]).strip()
        for field, info in Settings.model_fields.items()
    ]
    return _HEADER + "\n".join(rows) + "\n"


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "&#124;")


def main() -> int:
    """0, or 1 where the page on disk is not that of the settings."""
    if "--check" in sys.argv[1:]:
        return int(not TARGET.exists() or TARGET.read_text() != page())
    TARGET.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
