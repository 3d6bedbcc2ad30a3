"""Which partitions of the log a question really reads: its statements again, by EXPLAIN ANALYZE."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import sqlalchemy as sa

_PARTITION: Final = "usage_events_"
_EXPLAIN: Final = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "


def read_by(engine: sa.Engine, ask: Callable[[], object]) -> dict[str, int]:
    """The partitions that a question reads, and the most rows that each reading went through.

    A partition that PostgreSQL left out, while planning or while running, is not among them.
    """
    found: dict[str, int] = {}
    for statement, parameters in _statements(engine, ask):
        with engine.connect() as connection:
            plan: Any = connection.exec_driver_sql(_EXPLAIN + statement, parameters).scalar_one()
        for node in _nodes(plan[0]["Plan"]):
            name = node.get("Relation Name", "")
            if name.startswith(_PARTITION) and node["Actual Loops"]:
                rows = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
                found[name] = max(found.get(name, 0), int(rows))
    return found


def _statements(engine: sa.Engine, ask: Callable[[], object]) -> list[tuple[str, Any]]:
    seen: list[tuple[str, Any]] = []

    def note(*arguments: Any) -> None:  # noqa: ANN401 - SQLAlchemy's: connection, cursor, statement …
        _, _, statement, parameters, *_ = arguments
        if statement.lstrip().upper().startswith(("SELECT", "WITH")):
            seen.append((statement, parameters))

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        ask()
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)
    return seen


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)
