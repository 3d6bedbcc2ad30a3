"""Reads the documentation for what can be checked: links, commands, settings, paths, code."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import typer

from billing.cli.main import app
from billing.settings import Settings

ROOT: Final = Path(__file__).resolve().parents[2]

_FENCE: Final = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_SPAN: Final = re.compile(r"`([^`]+)`")
_LINK: Final = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING: Final = re.compile(r"^#+ (.+)$", re.MULTILINE)
_COMMAND: Final = re.compile(r"billing [a-z]")
_MODULE: Final = re.compile(r"(?:billing|workers|lab)(?:\.\w+)+")
_SETTING: Final = re.compile(r"\b(?:WEIGHBRIDGE_[A-Z_]+[A-Z]|[A-Z]+_URL)\b")
_PATH: Final = re.compile(
    r"(?:billing|workers|lab|tests|docs|scripts|requirements|alembic)/[\w./*-]*"
)


@dataclass(frozen=True, slots=True)
class Page:
    """A page of documentation."""

    path: Path
    text: str

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def prose(self) -> str:
        """Everything but code blocks."""
        return _FENCE.sub("", self.text)

    def blocks(self, language: str) -> list[str]:
        """The code blocks of a language ('' for none), with their indent taken off."""
        return [
            "".join(line.removeprefix(indent) for line in code.splitlines(keepends=True))
            for indent, found, code in _FENCE.findall(self.text)
            if found == language
        ]

    @property
    def spans(self) -> list[str]:
        """What stands between backticks, each on one line."""
        return [" ".join(span.split()) for span in _SPAN.findall(self.prose)]

    @property
    def anchors(self) -> set[str]:
        """What a link may point to after #, made from headings as GitHub makes it."""
        return {
            re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
            for heading in _HEADING.findall(self.prose)
        }


def pages() -> list[Page]:
    """The README, docs/, the other pages at the top, and the README of each room."""
    paths = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(
            path
            for top in ("billing", "workers", "lab")
            for path in ROOT.glob(f"{top}/**/README.md")
        ),
    ]
    return [Page(path, path.read_text("utf-8")) for path in sorted(paths)]


def broken_links(page: Page) -> list[str]:
    """Relative links that lead nowhere."""
    return [
        target
        for target in _LINK.findall(page.prose)
        if "://" not in target and not _leads_somewhere(page, target)
    ]


def _leads_somewhere(page: Page, target: str) -> bool:
    name, _, anchor = target.partition("#")
    if not name:
        return anchor in page.anchors
    path = (page.path.parent / name).resolve()
    if not path.exists() or not anchor:
        return path.exists()
    return anchor in Page(path, path.read_text("utf-8")).anchors


def commands(page: Page) -> Iterator[str]:
    """Every ``billing …`` of a page, from code blocks and between backticks."""
    for block in page.blocks(""):
        for line in block.splitlines():
            command = line.strip().removeprefix("$ ")
            if _COMMAND.match(command):
                yield command
    yield from (span for span in page.spans if _COMMAND.match(span))


def fault_of_command(command: str) -> str | None:
    """Why a command line cannot be run as it stands in the docs; None where it can."""
    found: Any = typer.main.get_command(app)
    words = shlex.split(command, comments=True)[1:]
    while words and hasattr(found, "commands") and not words[0].startswith("--"):
        word = words.pop(0)
        if word not in found.commands:
            return f"no command {word!r} in {command!r}"
        found = found.commands[word]
    known = {name for parameter in found.params for name in _names(parameter)}
    unknown = [word for word in words if word.startswith("--") and word not in known]
    return f"no option {unknown[0]} in {command!r}" if unknown else None


def _names(parameter: Any) -> list[str]:
    """An option's names, ``--no-…`` too."""
    return [*parameter.opts, *parameter.secondary_opts]


def all_options() -> set[str]:
    """Every option of every command."""
    waiting: list[Any] = [typer.main.get_command(app)]
    found: set[str] = set()
    while waiting:
        command = waiting.pop()
        found |= {name for parameter in command.params for name in _names(parameter)}
        waiting += getattr(command, "commands", {}).values()
    return found


def unknown_settings(page: Page) -> list[str]:
    """Names of environment variables that no setting reads."""
    fields = Settings.model_fields
    known = {f"WEIGHBRIDGE_{name.upper()}" for name in fields}
    known |= {name.upper() for name in fields if name.endswith("_url")} - {"PROXY_URL"}
    return [name for name in _SETTING.findall(page.text) if name not in known]


def missing_paths(page: Page) -> list[str]:
    """Files and folders of this repository, named between backticks, that are not there."""
    named = [span for span in page.spans if _PATH.fullmatch(span)]
    return [span for span in named if not list(ROOT.glob(span.rstrip("/")))]


def missing_modules(page: Page) -> list[str]:
    """Modules of this repository, or names in them, between backticks, that are not there."""
    named = [span for span in page.spans if _MODULE.fullmatch(span)]
    return [span for span in named if not _is_there(span)]


def _is_there(dotted: str) -> bool:
    path = ROOT.joinpath(*dotted.split("."))
    if path.with_suffix(".py").is_file() or path.is_dir():
        return True
    module = path.parent.with_suffix(".py")
    return module.is_file() and re.search(rf"\b{path.name}\b", module.read_text()) is not None
