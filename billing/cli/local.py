"""``billing local``: embedded servers; ``billing up``: everything in the foreground."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final

import typer

from billing import migrations
from billing.bootstrap import System
from billing.cli.context import Json, session_of
from billing.cli.output import Column, print_facts, print_json, print_table, say, warn
from billing.cli.running import until_signalled
from billing.core.errors import ConfigurationError
from billing.local import Endpoints, LocalServers
from billing.local.endpoints import masked

app = typer.Typer(no_args_is_help=True, help="Embedded servers, for what no URL names.")

_STOP_SECONDS: Final = 45.0
"""How long the processes of ``up`` may take to end: a worker finishes its tasks."""


@app.command()
def start(context: typer.Context, json: Json = False) -> None:
    """Start embedded servers in the background, for what no URL names, and migrate the database."""
    settings = session_of(context).settings
    servers = LocalServers(settings.local_dir, say=_say_unless(json))
    endpoints = servers.start(settings, need_rabbitmq=True, allow_kombu=True)
    migrations.upgrade(endpoints.database_url)
    if json:
        print_json({**_shown(endpoints), "notes": list(endpoints.notes)})
        return
    print_facts("Servers", list(_shown(endpoints).items()))
    for note in endpoints.notes:
        warn(note)


@app.command()
def stop(context: typer.Context, json: Json = False) -> None:
    """Stop the embedded servers. Their data stays."""
    stopped = LocalServers(session_of(context).settings.local_dir).stop()
    if json:
        print_json({"stopped": stopped})
    else:
        say(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


@app.command()
def status(context: typer.Context, json: Json = False) -> None:
    """List the embedded servers that were started here."""
    found = LocalServers(session_of(context).settings.local_dir).status()
    if json:
        print_json([asdict(each) for each in found])
        return
    print_table(
        "Embedded servers",
        [Column("server"), Column("state"), Column("pids"), Column("URL")],
        [
            (
                each.name,
                "running" if each.running else "ended",
                " ".join(map(str, each.pids)),
                each.url,
            )
            for each in found
        ],
        empty="none; start them with: billing local start",
    )


def up(
    context: typer.Context,
    procfile: Annotated[Path, typer.Option(help="What to run, one process a line.")] = Path(
        "Procfile"
    ),
) -> None:
    """Run everything in the foreground (Procfile); embedded servers where no URL names others."""
    if not procfile.is_file():
        raise ConfigurationError(
            "procfile", f"no file {procfile}", "run this where the Procfile is, or name it"
        )
    if find_spec("honcho") is None:
        raise ConfigurationError(
            "honcho", "it is not installed", "pip install 'weighbridge[local]'"
        )
    settings = session_of(context).settings
    servers = LocalServers(settings.local_dir, say=say)
    try:
        endpoints = servers.start(settings, need_rabbitmq=True, allow_kombu=True)
        for note in endpoints.notes:
            warn(note)
        _prepare(System(endpoints.applied_to(settings)))
        code = _run(procfile, endpoints.environment())
    finally:
        servers.stop_started()
    raise typer.Exit(code)


def _prepare(system: System) -> None:
    with system:
        migrations.upgrade(system.endpoints.database_url)
        system.ensure_partitions()


def _run(procfile: Path, environment: Mapping[str, str]) -> int:
    """Run the Procfile with honcho until one of its processes ends or we are told to stop."""
    beside = str(Path(sys.executable).parent)
    honcho = [sys.executable, "-m", "honcho", "start", "-f", str(procfile)]
    # Not read here: handed on, with the servers' URLs and our own programs first on the path.
    inherited = dict(os.environ)
    path = os.pathsep.join([beside, inherited.get("PATH", os.defpath)])
    with until_signalled() as stop:
        child = subprocess.Popen(  # noqa: S603 - this interpreter and a file that the user named
            honcho, env={**inherited, **environment, "PATH": path}, start_new_session=True
        )
        try:
            while child.poll() is None and not stop.wait(0.2):
                pass
        finally:
            code = _end(child)
    return 0 if stop.is_set() else code


def _end(child: subprocess.Popen[bytes]) -> int:
    """End honcho, which ends its processes; its exit code."""
    if child.poll() is None:
        child.terminate()
    try:
        return child.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _say_unless(silent: bool) -> Callable[[str], None]:
    return (lambda _: None) if silent else say


def _shown(endpoints: Endpoints) -> dict[str, str]:
    return {name: masked(url) for name, url in endpoints.environment().items()}
