#!/usr/bin/env python3
"""Check the house's rules on names, which ruff and import-linter cannot: see CONTRIBUTING.md.

1. A public class name is unique within the product.
2. Each entry of docs/glossary.md ends with a module or a class that exists.
3. A public name of the product that nothing in the product uses is dead, whatever tests do with it.
4. No function is longer than 70 lines, no file longer than 400.

Exit code: 0 if all hold, else 1, with one line for each breach.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PRODUCT: Final = ("billing", "workers")
DEVTOOLS: Final = Path("billing", "devtools")
SCHEMA: Final = "billing/postgres/schema"
"""Tables that only SQL texts name are still what migrations are checked against."""
LONGEST_FUNCTION: Final = 70
LONGEST_FILE: Final = 400

FACE: Final = (
    Path("workers", "__init__.py"),
    Path("workers", "errors.py"),
    Path("workers", "flowerconfig.py"),
    Path("billing", "testing.py"),
)
"""What users import: its names are used outside the product."""

CALLED_BY_FRAMEWORKS: Final = re.compile(
    r"command|callback|shared_task|task|validator|serializer|get|post|exception_handler|"
    r"middleware|overload|connect|register|abstractmethod|hookimpl"
)
"""Decorators that hand a function to Celery, Typer, pydantic, FastAPI or a signal."""

KEPT: Final = {
    "open_invoice": "invoices of our own come next and use the providers' halves",
    "finalise_invoice": "as open_invoice",
}
"""Names that nothing uses yet, each with the reason why it stays."""

_DOTTED: Final = re.compile(r"[.:]?[A-Za-z_]\w*([.:][A-Za-z_]\w*)*")
_ENTRY: Final = re.compile(r"^\*\*(.+?)\*\*", re.MULTILINE)
_CODE: Final = re.compile(r"`([\w.]+)`")


@dataclass(slots=True)
class Definition:
    """A public name and where it is defined."""

    name: str
    file: Path
    line: int
    node: ast.AST


def _names_read(tree: ast.AST) -> Counter[str]:
    """How often ``tree`` reads each name and attribute, and those in texts such as a path."""
    found: Counter[str] = Counter()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()) | ast.Attribute(attr=name):
                found[name] += 1
            case ast.Constant(value=str(text)) if _DOTTED.fullmatch(text):
                found.update(re.split("[.:]", text))
    return found


def main() -> int:
    """Print every breach; the exit code."""
    trees = {path: ast.parse((ROOT / path).read_text()) for path in _product_files()}
    breaches = [
        *_repeated_classes(trees),
        *_glossary_without_code(trees),
        *_dead_names(trees),
        *_too_long(trees),
    ]
    for breach in breaches:
        sys.stdout.write(f"{breach}\n")
    if breaches:
        sys.stdout.write(f"{len(breaches)} names or lengths break the rules of CONTRIBUTING.md\n")
    return 1 if breaches else 0


def _product_files() -> Iterator[Path]:
    for package in PRODUCT:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT)


def _public_classes(trees: dict[Path, ast.Module]) -> dict[str, list[str]]:
    places: dict[str, list[str]] = defaultdict(list)
    for path, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{path}:{node.lineno}")
    return places


def _repeated_classes(trees: dict[Path, ast.Module]) -> Iterator[str]:
    for name, places in sorted(_public_classes(trees).items()):
        if len(places) > 1:
            yield f"{places[0]}: class {name} is also at {', '.join(places[1:])}: rename one"


def _glossary_without_code(trees: dict[Path, ast.Module]) -> Iterator[str]:
    classes = set(_public_classes(trees))
    modules = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in trees}
    glossary = Path("docs", "glossary.md")
    text = (ROOT / glossary).read_text()
    starts = [*_ENTRY.finditer(text)]
    for start, after in zip(starts, [*starts[1:], None], strict=True):
        entry = text[start.start() : after.start() if after else len(text)].split("\n#")[0]
        named = _CODE.findall(entry)
        line = text.count("\n", 0, start.start()) + 1
        if not named or not (named[-1] in classes or named[-1] in modules):
            found = named[-1] if named else "nothing"
            yield (
                f"{glossary}:{line}: {start.group(1)} names {found}: end it with a module or a "
                "class that exists"
            )


def _dead_names(trees: dict[Path, ast.Module]) -> Iterator[str]:
    uses = _uses_of_everything(trees)
    living = {*KEPT, *_overridden_names(trees)}
    for path, tree in trees.items():
        if path in FACE or DEVTOOLS in path.parents or str(path).startswith(SCHEMA):
            continue
        for definition in _definitions(path, tree):
            name = definition.name
            if name not in living and uses[name] <= _names_read(definition.node)[name]:
                yield (
                    f"{path}:{definition.line}: nothing in the product uses {name}: delete it, or "
                    "use it"
                )


def _uses_of_everything(trees: dict[Path, ast.Module]) -> Counter[str]:
    uses: Counter[str] = Counter()
    for path, tree in trees.items():
        uses += _names_read(tree)
        if path in FACE:
            uses.update(_imported(tree))
    for outside in ("alembic", "scripts"):
        for path in (ROOT / outside).rglob("*.py"):
            uses += _names_read(ast.parse(path.read_text()))
    return uses


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)


def _definitions(path: Path, tree: ast.Module) -> Iterator[Definition]:
    for node in tree.body:
        yield from _named(path, node)
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield from _named(path, member)


def _named(path: Path, node: ast.stmt) -> Iterator[Definition]:
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            decorators = " ".join(ast.unparse(each) for each in node.decorator_list)
            called = CALLED_BY_FRAMEWORKS.search(decorators)
            names = [] if called else [name]
        case ast.AnnAssign(target=ast.Name(id=name)):
            names = [name]
        case ast.Assign(targets=[ast.Name(id=name)]):
            names = [name]
        case _:
            names = []
    for name in names:
        if not name.startswith("_"):
            yield Definition(name, path, node.lineno, node)


def _overridden_names(trees: dict[Path, ast.Module]) -> set[str]:
    """Methods of classes with a base outside the product: their callers are outside, too."""
    ours = set(_public_classes(trees))
    names: set[str] = set()
    for tree in trees.values():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef):
                continue
            bases = {ast.unparse(base).split("[")[0].rpartition(".")[2] for base in node.bases}
            if bases - ours - {"Protocol", "Generic", "StrEnum", "Enum", "NamedTuple", "TypedDict"}:
                names |= {
                    member.name
                    for member in node.body
                    if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef)
                }
    return names


def _too_long(trees: dict[Path, ast.Module]) -> Iterator[str]:
    for path, tree in trees.items():
        lines = (ROOT / path).read_text().count("\n")
        if lines > LONGEST_FILE:
            yield f"{path}: {lines} lines, more than {LONGEST_FILE}: it may hold two rooms"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    yield (
                        f"{path}:{node.lineno}: {node.name} has {length} lines, more than "
                        f"{LONGEST_FUNCTION}: split it"
                    )


if __name__ == "__main__":
    sys.exit(main())
