"""``billing local``: embedded servers; ``billing up``: everything in the foreground."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from billing.cli.context import Json, session_of
from billing.cli.output import Column, print_facts, print_json, print_table, say, warn
from billing.container import Container
from billing.core.errors import ConfigurationError
from billing.devtools.embedded_servers import Endpoints, LocalServers
from billing.devtools.embedded_servers.up import up as run_everything
from billing.postgres import migrations
from billing.server_urls import masked

app = typer.Typer(no_args_is_help=True, help="Embedded servers, for what no URL names.")


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
    settings = session_of(context).settings
    if find_spec("honcho") is None:
        raise ConfigurationError(
            "honcho", "it is not installed", "pip install 'weighbridge[local]'"
        )

    def prepare(endpoints: Endpoints) -> None:
        with Container(endpoints.applied_to(settings)) as container:
            migrations.upgrade(container.database_url)
            container.ensure_partitions()

    raise typer.Exit(run_everything(settings, say=say, procfile=procfile, prepare=prepare))


def _say_unless(silent: bool) -> Callable[[str], None]:
    return (lambda _: None) if silent else say


def _shown(endpoints: Endpoints) -> dict[str, str]:
    return {name: masked(url) for name, url in endpoints.environment().items()}
