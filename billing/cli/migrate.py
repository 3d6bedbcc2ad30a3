"""``billing migrate``: the database's schema and partitions."""

from __future__ import annotations

import typer

from billing.cli.context import Json, container_of
from billing.cli.output import print_json, say
from billing.postgres import migrations


def migrate(context: typer.Context, json: Json = False) -> None:
    """Bring the database to the newest schema, and make the log's partitions. May be repeated."""
    container = container_of(context)
    url = container.endpoints.database_url
    before = migrations.current(url)
    migrations.upgrade(url)
    after = migrations.current(url)
    made = container.ensure_partitions()
    if json:
        print_json({"revision_before": before, "revision": after, "partitions_made": made})
        return
    if before == after:
        say(f"the schema is at {after} already")
    else:
        say(f"the schema went from {before or 'nothing'} to {after}")
    say(f"partitions made: {', '.join(made)}" if made else "every partition was there")
