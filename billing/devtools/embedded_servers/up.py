"""Everything at once, in the foreground: the servers, the schema, and what the Procfile names."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from billing.devtools.embedded_servers.launch import Say
from billing.devtools.embedded_servers.process import LocalServerError
from billing.devtools.embedded_servers.servers import running
from billing.postgres.migrations import upgrade
from billing.server_urls import Endpoints
from billing.settings import Settings

_STOP_SECONDS: Final = 30.0
"""The time that the Procfile's processes have after Ctrl-C; honcho kills its own after five."""


def up(
    settings: Settings,
    *,
    say: Say,
    procfile: Path = Path("Procfile"),
    prepare: Callable[[Endpoints], None] | None = None,
) -> int:
    """Start what is needed, migrate, and run the Procfile until Ctrl-C or until one of it ends.

    Args:
        settings: Servers are taken from here where named, else started in ``local_dir``.
        say: Takes lines about what is going on.
        procfile: One ``name: command`` a line.
        prepare: Makes the database ready, in place of migrating it.

    Returns:
        The exit code: 0 after Ctrl-C or SIGTERM, else that of the process which ended first.

    Raises:
        LocalServerError: There is no Procfile, or a server cannot be had.
    """
    if not procfile.is_file():
        raise LocalServerError("Procfile", f"no {procfile}", "run this where it is, or name it")
    with running(settings, say=say) as endpoints:
        for note in endpoints.notes:
            say(note)
        say("PostgreSQL: bringing the schema up to date")
        if prepare is None:
            upgrade(endpoints.database_url)
        else:
            prepare(endpoints)
        return _run(procfile, _environment(settings, endpoints, say))


def _environment(settings: Settings, endpoints: Endpoints, say: Say) -> dict[str, str]:
    extra = endpoints.environment()
    if settings.flower_basic_auth is None:
        password = secrets.token_urlsafe(9)
        extra["WEIGHBRIDGE_FLOWER_BASIC_AUTH"] = f"weighbridge:{password}"
        where = f"http://{settings.flower_address}:{settings.flower_port}"
        say(f"Flower: {where} as weighbridge, password {password} (for this run)")
    # The Procfile's programs are those of this very environment, whether it was activated or not.
    extra["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    extra["PYTHONUNBUFFERED"] = "1"
    return {**os.environ, **extra}


def _run(procfile: Path, environment: Mapping[str, str]) -> int:
    command = [sys.executable, "-m", "honcho", "-f", str(procfile), "start"]
    # honcho stays in the terminal's foreground group: Ctrl-C reaches it, and it stops its own.
    with subprocess.Popen(command, env=environment) as honcho:  # noqa: S603 - our own command line
        try:
            return honcho.wait()
        except KeyboardInterrupt:
            # A Ctrl-C reached honcho as well; a SIGTERM reached only us.
            honcho.send_signal(signal.SIGINT)
            _wait(honcho)
            return 0
        except BaseException:
            honcho.terminate()
            _wait(honcho)
            raise


def _wait(honcho: subprocess.Popen[bytes]) -> None:
    # A second Ctrl-C must not leave its processes behind; the wait is bounded.
    with contextlib.suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
        honcho.wait(_STOP_SECONDS)
        return
    honcho.terminate()
    with contextlib.suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
        honcho.wait(_STOP_SECONDS)
        return
    honcho.kill()
