"""``python -m scale WHAT [--seconds N] [--json]``: several nodes of a server, one of them lost."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from pathlib import Path
from typing import Any, Final

from billing.devtools.embedded_servers.process import terminated_as_interrupt
from billing.settings import Settings
from lab.bench.ground import Ground, Say
from lab.scale import postgres_run, rabbitmq_run, redis_run, sizes_run

_FOLDER: Final = Path(".local") / "scale"
_RUNS: Final = {
    "redis-cluster": redis_run.run,
    "redis-cluster-without-replicas": lambda ground, seconds, say: redis_run.run(
        ground, seconds, say, replicas=0
    ),
    "redis-cluster-late-replica": lambda ground, seconds, say: redis_run.run(
        ground, seconds, say, late=True
    ),
    "rabbitmq-cluster": rabbitmq_run.run,
    "postgres-replica": postgres_run.run,
    "sizes": sizes_run.run,
}


def main(arguments: list[str] | None = None) -> int:
    """Run one; exit with 1 where an event was lost or is there twice."""
    parser = argparse.ArgumentParser(prog="python -m scale", description=__doc__)
    parser.add_argument("what", choices=sorted(_RUNS))
    parser.add_argument("--seconds", type=float, default=30.0, help="of load (default: 30)")
    parser.add_argument("--json", action="store_true", help="print one document for machines")
    chosen = parser.parse_args(arguments)

    def say(line: str) -> None:
        if not chosen.json:
            print(line, file=sys.stderr)  # noqa: T201 - a script, run by hand

    with terminated_as_interrupt():
        found = _run(chosen.what, chosen.seconds, say)
    print(json.dumps(found, indent=2) if chosen.json else _lines(found))  # noqa: T201 - as above
    return 0 if found["ok"] else 1


def _run(what: str, seconds: float, say: Say) -> dict[str, Any]:
    folder = (_FOLDER / f"{what}-{secrets.token_hex(3)}").resolve()
    given = Settings(local_dir=folder, spool_dir=folder / "spool")
    with Ground(folder, given, say) as ground:
        found: dict[str, Any] = _RUNS[what](ground, seconds, say)
    books = found["books"]
    wrong = ("lost", "twice", "unknown", "amounts_differ")
    return {"run": what, "ok": found["log_complete"] and not any(books[each] for each in wrong),
            **found}  # fmt: skip


def _lines(found: dict[str, Any], indent: str = "") -> str:
    lines = []
    for name, value in found.items():
        words = name.replace("_", " ")
        if isinstance(value, dict):
            lines += [f"{indent}{words}:", _lines(value, indent + "  ")]
        else:
            is_figure = isinstance(value, int | float) and not isinstance(value, bool)
            lines.append(f"{indent}{words}: {format(value, ',') if is_figure else value}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
