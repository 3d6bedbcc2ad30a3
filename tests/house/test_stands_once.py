"""What must stand once does: Redis key names, advisory locks, the columns of a usage event.

The syntax trees are walked, so that a copy is found however it is spelled.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from billing.core.usage_event import FIELDS
from billing.postgres.schema import usage_events, usage_hourly

ROOT = Path(__file__).resolve().parents[2]
KEYS = Path("billing", "redis", "keys.py")
LOCKS = Path("billing", "postgres", "locks.py")
EVENT = Path("billing", "core", "usage_event.py")
MOST_COLUMNS = 7
COLUMNS = {*FIELDS, *usage_events.columns.keys()}
SUMS = {*usage_hourly.columns.keys(), "customer", "sku"}
"""The rollups' own columns, which are not an event's list even where the names are the same."""
MOST_BEYOND_SUMS = 2
TYPED = ("UsageEvent", "TaskFacts", "facts.event")
"""An event, and the facts of a run that it is made of: their fields are checked by their types."""
EXPLAIN = Path("billing", "cli", "task_timeline.py")
"""The JSON of ``billing explain`` has names of its own, also for steps that have no event."""

KEY_PART = re.compile(
    r"\S*(\{s\d*\}:|:(acct|holds?|open|done|out|born|bad|limit|spent)\b|:relay:)\S*"
)
LOCK_CALL = re.compile(r"pg_(try_)?advisory", re.IGNORECASE)
WORD = re.compile(r"[a-z_]+")


def product() -> list[Path]:
    paths = [*(ROOT / "billing").rglob("*.py"), *(ROOT / "workers").rglob("*.py")]
    return sorted(p.relative_to(ROOT) for p in paths if "devtools" not in p.parts)


def tree_of(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def documentation(tree: ast.Module) -> set[int]:
    """The ids of constants that are docstrings."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every text of code with its line, docstrings left out."""
    left_out = documentation(tree)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in left_out
        ):
            yield node.lineno, node.value


def names_listed(node: ast.AST) -> list[str]:  # noqa: PLR0911 - one return for each spelling
    """The names that a literal, a call's keywords, a class's fields or a statement lists."""
    match node:
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
            return [
                item.value if isinstance(item, ast.Constant) else getattr(item, "attr", "")
                for item in items
                if isinstance(item, ast.Constant | ast.Attribute)
            ]
        case ast.Dict(keys=keys):
            return [key.value for key in keys if isinstance(key, ast.Constant)]
        case ast.Call(func=function, keywords=keywords):
            if ast.unparse(function).endswith(TYPED):
                return []
            return [keyword.arg for keyword in keywords if keyword.arg]
        case ast.ClassDef(name=name, body=body) if name not in TYPED:
            return [
                item.target.id
                for item in body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            ]
        case ast.Constant(value=str(text)) if re.search(
            r"\b(SELECT|INSERT|COPY|UPDATE|RETURNING)\b", text
        ):
            return WORD.findall(text)
        case _:
            return []


def is_copy(names: set[str]) -> bool:
    """Whether names are a list of an event's columns."""
    columns = names & COLUMNS
    return len(columns) > MOST_COLUMNS and len(columns - SUMS) > MOST_BEYOND_SUMS


@pytest.mark.parametrize("path", product(), ids=str)
def test_key_names_stand_in_one_file(path: Path):
    if path == KEYS:
        return
    found = [(line, text) for line, text in texts(tree_of(path)) if KEY_PART.fullmatch(text)]
    assert not found, f"{path}: a Redis key is named outside {KEYS}"


@pytest.mark.parametrize("path", [*product(), Path("alembic", "env.py")], ids=str)
def test_advisory_locks_stand_in_one_file(path: Path):
    if path == LOCKS:
        return
    found = [(line, text) for line, text in texts(tree_of(path)) if LOCK_CALL.search(text)]
    assert not found, f"{path}: an advisory lock is taken outside {LOCKS}"


@pytest.mark.parametrize("path", product(), ids=str)
def test_the_columns_of_an_event_are_listed_in_one_file(path: Path):
    if path in (EVENT, EXPLAIN):
        return
    tree = tree_of(path)
    left_out = documentation(tree)
    found = {
        node.lineno: sorted({*names_listed(node)} & COLUMNS)
        for node in ast.walk(tree)
        if id(node) not in left_out and is_copy({*names_listed(node)})
    }
    assert not found, f"{path}: make it from usage_event.FIELDS"


def test_the_rules_know_a_key_and_a_lock_where_they_stand():
    assert any(KEY_PART.fullmatch(text) for _, text in texts(tree_of(KEYS)))
    assert any(LOCK_CALL.search(text) for _, text in texts(tree_of(LOCKS)))


def test_the_rule_finds_a_copy_however_it_is_spelled():
    eight = [name for name in FIELDS if name not in SUMS][:8]
    spelled = [
        repr(eight),
        repr(tuple(eight)),
        f"dict({', '.join(f'{name}=1' for name in eight)})",
        repr(dict.fromkeys(eight)),
        "class Copy:\n" + "\n".join(f"    {name}: int" for name in eight),
        f'"INSERT INTO usage_events ({", ".join(eight)}) VALUES"',
    ]
    for source in spelled:
        listed = [{*names_listed(node)} & COLUMNS for node in ast.walk(ast.parse(source))]
        assert max(len(names) for names in listed) == 8, source
