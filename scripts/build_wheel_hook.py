"""Hatchling's build hook: put everything into the wheel under one name, ``weighbridge``.

In a checkout the sources are the real packages ``billing`` and ``workers``. A user's project may
have packages of these names, so the wheel holds them as ``weighbridge.billing`` and
``weighbridge.workers``, with ``alembic/`` as ``weighbridge/billing/alembic`` and the files of
``scripts/wheel/`` as the top level. Import statements are found in the syntax tree and rewritten.
Names of modules in strings are not: the code writes those with ``__package__`` or ``__name__``.
A bare import or such a string that is left fails the build; see
``docs/decisions/0019-one-import-name.md``.

The console scripts of ``pyproject.toml`` name ``billing.cli.main``, which is right for an editable
install; in the wheel they are written with the same prefix. Hatchling has one list of scripts for
both, so the hook changes it for the build of the wheel alone, and looks at what was written.
"""  # noqa: INP001 - loaded by hatchling, by its path

from __future__ import annotations

import ast
import re
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

TOP: Final = "weighbridge"
"""The wheel's only top-level name."""
ROOTS: Final = ("billing", "workers")
"""The packages of the checkout that move below it."""
PLACES: Final = {
    "scripts/wheel": TOP,
    "billing": f"{TOP}/billing",
    "workers": f"{TOP}/workers",
    "alembic": f"{TOP}/billing/alembic",
}
"""Folders of the checkout, and where they are in the wheel."""

_FROM: Final = re.compile(rb"from[ \t]+(?=(?:billing|workers)\b)")
_DOTTED: Final = re.compile(r"(?<![\w./-])(?:billing|workers)(?:\.\w+)+")


class BuildError(Exception):
    """The wheel would not be whole under its one name."""


def wheel_files(root: Path) -> dict[str, bytes]:
    """The wheel's files, relocated, by their place in it.

    Args:
        root: The checkout, or an unpacked sdist.

    Raises:
        BuildError: A bare name of ours is left.
    """
    files = {}
    for folder, place in PLACES.items():
        for file in sorted((root / folder).rglob("*")):
            if file.is_dir() or file.suffix in {".md", ".mako", ".pyc"}:
                continue
            content = file.read_bytes()
            name = f"{place}/{file.relative_to(root / folder).as_posix()}"
            files[name] = relocated(content) if file.suffix == ".py" else content
    refuse_bare_names(files)
    return files


def relocated(source: bytes) -> bytes:
    """A module's source with ``from billing…`` and ``from workers…`` below the one name."""
    lines = source.splitlines(keepends=True)
    imports = [node for node in ast.walk(_parsed(source)) if _is_bare(node)]
    for node in sorted(imports, key=lambda node: (node.lineno, node.col_offset), reverse=True):
        line = lines[node.lineno - 1]
        # Columns count bytes. What is written in another way is left, and then refused.
        before, after = line[: node.col_offset], line[node.col_offset :]
        lines[node.lineno - 1] = before + _FROM.sub(rf"\g<0>{TOP}.".encode(), after, count=1)
    return b"".join(lines)


def refuse_bare_names(files: Mapping[str, bytes]) -> None:
    """Check that no module of the wheel imports or names one of ours without the prefix.

    Args:
        files: The wheel's, by their place in it.

    Raises:
        BuildError: With every place that does.
    """
    trees = {name: _parsed(text) for name, text in files.items() if name.endswith(".py")}
    known = _names(trees)
    faults = [
        f"{name}:{line}: {fault}"
        for name, tree in trees.items()
        for line, fault in _faults(tree, known)
    ]
    if faults:
        raise BuildError("names that the wheel does not have:\n" + "\n".join(sorted(faults)))


def _faults(tree: ast.Module, known: Collection[str]) -> Iterator[tuple[int, str]]:
    """Bare imports, and strings with the name of a module or of what is in one."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if _is_bare(node):
            yield node.lineno, f"{ast.unparse(node)}: write `from …` on one line"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) in prose:
                continue
            for dotted in _DOTTED.findall(node.value):
                if dotted in known:
                    yield node.lineno, f"{dotted!r} in a string: write it with __package__"


def _names(trees: Mapping[str, ast.Module]) -> set[str]:
    """Every dotted name of the checkout: folders, modules, and what these define or import."""
    names = set()
    for file, tree in trees.items():
        parts = file.removeprefix(f"{TOP}/").removesuffix(".py").split("/")
        if parts[-1] == "__init__":
            parts.pop()
        module = ".".join(parts)
        names |= {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
        names |= {f"{module}.{name}" for node in tree.body for name in _defined(node)}
    return names


def _defined(node: ast.stmt) -> Iterator[str]:
    match node:
        case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
            yield node.name
        case ast.Import() | ast.ImportFrom():
            yield from (alias.asname or alias.name for alias in node.names)
        case ast.Assign():
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name


def _is_bare(node: ast.AST) -> bool:
    match node:
        case ast.ImportFrom(module=str() as module, level=0):
            return module.split(".")[0] in ROOTS
        case ast.Import(names=aliases):
            return any(alias.name.split(".")[0] in ROOTS for alias in aliases)
    return False


def _parsed(source: bytes) -> ast.Module:
    return ast.parse(source)


class WheelHook(BuildHookInterface[Any]):
    """Hatchling's ``custom`` hook of the target ``wheel``."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the relocated tree and have it put into the wheel; an editable one is left alone.

        Raises:
            BuildError: A bare name of ours is left.
        """
        if version == "editable":
            return
        self._folder = tempfile.TemporaryDirectory()
        for name, content in wheel_files(Path(self.root)).items():
            file = Path(self._folder.name, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        build_data["force_include"][str(Path(self._folder.name, TOP))] = TOP
        scripts = self.metadata.core.scripts
        scripts.update({name: f"{TOP}.{target}" for name, target in scripts.items()})

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Look at the wheel itself: one top-level name, and scripts that start what is in it.

        Raises:
            BuildError: It is otherwise.
        """
        del build_data
        if version == "editable":
            return
        self._folder.cleanup()
        with zipfile.ZipFile(artifact_path) as wheel:
            tops = {name.split("/")[0] for name in wheel.namelist()}
            (entry_points,) = (n for n in wheel.namelist() if n.endswith("/entry_points.txt"))
            targets = re.findall(r"= (\S+)", wheel.read(entry_points).decode())
        if {name for name in tops if not name.endswith(".dist-info")} != {TOP}:
            raise BuildError(f"the wheel has more than {TOP} at its top: {sorted(tops)}")
        if not all(target.startswith(f"{TOP}.") for target in targets):
            raise BuildError(f"scripts start what the wheel does not have: {targets}")
