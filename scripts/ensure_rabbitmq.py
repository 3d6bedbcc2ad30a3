"""Before the tests: see to it that there is a RabbitMQ, where that can be done.

Nothing is done where AMQP_URL names one, one answers on the standard port, or one is installed
that the tests can start privately. On Debian as root it is installed, which is said aloud; its
service is not started. Elsewhere the tests of the AMQP path are skipped (with CI=true: fail).
"""  # noqa: INP001 - a script, run by its path

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from billing.devtools.embedded_servers import answers
from billing.devtools.embedded_servers.rabbitmq import STANDARD_URL, RabbitMQ
from billing.settings import Settings

POLICY: Final = Path("/usr/sbin/policy-rc.d")
"""Debian's packages ask this program whether they may start their service (invoke-rc.d(8))."""
_FORBIDDEN: Final = "#!/bin/sh\n# Made by weighbridge/scripts/ensure_rabbitmq.py.\nexit 101\n"


def say(line: str) -> None:
    """One line for the user."""
    sys.stderr.write(f"{line}\n")


def available() -> bool:
    """Whether the tests will find a RabbitMQ."""
    return (
        Settings().amqp_url is not None
        or answers(STANDARD_URL)
        or RabbitMQ().installed() is not None
    )


@contextlib.contextmanager
def services_not_started(policy: Path = POLICY) -> Iterator[None]:
    """Keep packages from starting services; a policy that is there already is left alone."""
    if policy.exists():
        yield
        return
    policy.write_text(_FORBIDDEN)
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)


def install(apt: str) -> None:
    """Install Debian's rabbitmq-server.

    Raises:
        subprocess.CalledProcessError: apt-get failed.
    """
    say("No RabbitMQ found: installing Debian's rabbitmq-server with apt-get.")
    say("Its service is not started; the tests run a private node on 127.0.0.1.")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = [apt, "-qq", "install", "-y", "--no-install-recommends", "rabbitmq-server"]
    with services_not_started():
        subprocess.run([apt, "-qq", "update"], env=environment, check=True)  # noqa: S603 - apt-get
        subprocess.run(command, env=environment, stdout=sys.stderr, check=True)  # noqa: S603 - as above


def main() -> None:
    """Look, and install where possible. Never fails: the tests themselves say what is missing."""
    if available():
        return
    apt = shutil.which("apt-get")
    if apt is not None and os.geteuid() == 0:
        try:
            install(apt)
        except subprocess.CalledProcessError as error:
            say(f"That failed: {error}")
    if not available():
        say("No RabbitMQ: the AMQP path cannot be tested. Install rabbitmq-server or set AMQP_URL.")


if __name__ == "__main__":
    main()
