"""A private node of an installed RabbitMQ, beside any system node and without touching it.

Everything by which two nodes could meet is its own: node name, ports, the port mapper (epmd),
cookie, configuration, plugins, data and logs. It listens on 127.0.0.1 only.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from amqp import Connection
from amqp.exceptions import AMQPError
from kombu.utils.url import url_to_parts

from billing.devtools.embedded_servers.launch import Plan, Say, free_ports
from billing.devtools.embedded_servers.process import Command, LocalServerError
from billing.devtools.embedded_servers.state import secret

STANDARD_URL: Final = "amqp://guest:guest@127.0.0.1:5672//"
_USER: Final = "weighbridge"
# The script itself first: Debian's wrapper in /usr/sbin becomes the system node's user.
SCRIPT_FOLDERS: Final = (
    Path("/usr/lib/rabbitmq/bin"),
    Path("/usr/local/sbin"),
    Path("/opt/homebrew/sbin"),
    Path("/usr/sbin"),
)
_EPMD_PATTERNS: Final = (
    "usr/lib/erlang/bin/epmd",
    "usr/lib/erlang/erts-*/bin/epmd",
    "usr/bin/epmd",
)
_CONFIGURATION: Final = """\
listeners.tcp.local = 127.0.0.1:{port}
distribution.listener.interface = 127.0.0.1
distribution.listener.port_range.min = {distribution_port}
distribution.listener.port_range.max = {distribution_port}
default_user = {user}
default_pass = {password}
log.console = true
log.console.level = info
log.file = false
disk_free_limit.absolute = 50MB
"""


class RabbitMQ:
    """Launches a private RabbitMQ node.

    Args:
        folders: Searched for ``rabbitmq-server`` beside PATH.
    """

    name = "rabbitmq"
    start_seconds = 90.0

    def __init__(self, folders: Sequence[Path] = SCRIPT_FOLDERS) -> None:
        self.folders = folders

    def installed(self) -> Path | None:
        """The start script of an installed RabbitMQ."""
        for folder in self.folders:
            if (folder / "rabbitmq-server").is_file():
                return folder / "rabbitmq-server"
        found = shutil.which("rabbitmq-server")
        return Path(found) if found else None

    def reached_by_others(self, folder: Path) -> list[Path]:  # noqa: ARG002 - the port's signature
        """None: it runs as us, as root too."""
        return []

    def plan(self, folder: Path, say: Say) -> Plan:
        """Write its configuration, choose ports."""
        script = self.installed()
        if script is None:
            raise LocalServerError(
                "RabbitMQ",
                "none answers on the standard port and no rabbitmq-server is installed",
                "install rabbitmq-server, or set AMQP_URL",
            )
        say(f"RabbitMQ: starting a private node of {script}")
        port, distribution_port, epmd_port = free_ports(3)
        password = secret(folder / "password")
        for name in ("data", "log", "home", "conf.d", "schema"):
            (folder / name).mkdir(exist_ok=True)
        (folder / "enabled_plugins").write_text("[].\n")
        (folder / "rabbitmq-env.conf").write_text("")
        (folder / "rabbitmq.conf").write_text(
            _CONFIGURATION.format(
                port=port, distribution_port=distribution_port, user=_USER, password=password
            )
        )
        (folder / "rabbitmq.conf").chmod(0o600)
        environment = _environment(folder, distribution_port, epmd_port)
        log = folder / "rabbitmq.log"
        epmd = Command(
            name="epmd",
            # Without -daemon it stays our child, so that it can be ended by its pid.
            arguments=[_epmd(), "-port", str(epmd_port), "-address", "127.0.0.1"],
            folder=folder,
            log=folder / "epmd.log",
            environment=environment,
        )
        node = Command(self.name, [str(script)], folder, log, environment)
        return Plan(f"amqp://{_USER}:{password}@127.0.0.1:{port}//", [epmd, node], log)

    def ready(self, url: str) -> bool:
        """Whether it lets us in."""
        return answers(url)


def answers(url: str, *, timeout_seconds: float = 2.0) -> bool:
    """Whether a RabbitMQ at ``url`` lets us in: a whole AMQP handshake, within the time-out."""
    _, host, port, user, password, path, _ = url_to_parts(url)
    # The connection and the three answers of the handshake are awaited one by one.
    one_wait = timeout_seconds / 4
    connection = Connection(
        host=f"{host or '127.0.0.1'}:{port or 5672}",
        userid=user or "guest",
        password=password or "guest",
        virtual_host=path or "/",
        connect_timeout=one_wait,
        read_timeout=one_wait,
        write_timeout=one_wait,
    )
    try:
        connection.connect()
        connection.close()
    except (OSError, AMQPError):
        connection.collect()
        return False
    return True


def _environment(folder: Path, distribution_port: int, epmd_port: int) -> dict[str, str]:
    # One name per folder, so that two private nodes differ in every list of processes.
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    return {
        # Erlang keeps its cookie in the home folder and makes one at the first time.
        "HOME": str(folder / "home"),
        "ERL_EPMD_PORT": str(epmd_port),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        # The script then becomes the node instead of watching over it: one process, one pid.
        "RUNNING_UNDER_SYSTEMD": "true",
        "RABBITMQ_NODENAME": f"weighbridge-{name}@localhost",
        "RABBITMQ_DIST_PORT": str(distribution_port),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_SCHEMA_DIR": str(folder / "schema"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "schema"),
        "RABBITMQ_PID_FILE": str(folder / "rabbitmq.pid"),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_CONFIG_FILES": str(folder / "conf.d"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
    }


def _epmd() -> str:
    for pattern in _EPMD_PATTERNS:
        for found in sorted(Path("/").glob(pattern)):
            return str(found)
    found_on_path = shutil.which("epmd")
    if found_on_path is None:
        raise LocalServerError("RabbitMQ", "epmd, a part of Erlang, is not found", "set AMQP_URL")
    return found_on_path
