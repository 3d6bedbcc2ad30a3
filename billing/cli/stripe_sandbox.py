"""``billing stripe-sandbox``: a local Stripe in the foreground, for whoever has no key at hand."""

from __future__ import annotations

import errno
import json
import secrets
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlsplit

import typer
from rich.text import Text

from billing.cli.output import out, warn
from billing.core.errors import ConfigurationError

if TYPE_CHECKING:
    from billing.devtools.stripe_sandbox import Sandbox

KEY: Final = "sk_test_local"
"""Any secret key of test mode is let in; this one says what it is for."""

WEBHOOKS: Final = "http://127.0.0.1:8010/webhooks/stripe"
"""The address at which ``billing api`` takes webhooks by default; for an example."""


def stripe_sandbox(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="The port to listen on; 0: a free one.", min=0, max=65_535)
    ] = 12_111,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the settings only.")] = False,
    allow_network: Annotated[
        bool,
        typer.Option(
            "--allow-network",
            help="Listen on an address that others reach. They need no key to change everything.",
        ),
    ] = False,
    webhook: Annotated[
        str, typer.Option(help="Deliver events there, snapshots and thin ones.", metavar="URL")
    ] = "",
    webhook_secret: Annotated[
        str, typer.Option(help="What signs webhooks. Unset: made anew.", metavar="SECRET")
    ] = "",
) -> None:
    """Run a local Stripe until stopped. It keeps everything in memory and needs no account."""
    # FastAPI takes half a second to import, which no other command should wait for.
    from billing.devtools.stripe_sandbox import main  # noqa: PLC0415

    _check_host(host, allow_network=allow_network)
    _check_webhook(webhook)
    secret = webhook_secret or f"whsec_{secrets.token_hex(16)}"
    try:
        main(
            host,
            port,
            prepare=_prepared(webhook, secret),
            announce=lambda url: _print(_settings(url, secret) if quiet else _usage(url, secret)),
        )
    except OSError as error:
        raise _unavailable(host, port, error) from error


def _prepared(webhook: str, secret: str) -> Callable[[Sandbox], None]:
    def prepare(box: Sandbox) -> None:
        box.events.secret = secret
        if webhook:
            box.events.register(webhook, payload="snapshot")
            box.events.register(webhook, payload="thin")

    return prepare


def _settings(url: str, secret: str) -> Iterable[str]:
    yield f"export STRIPE_API_KEY={KEY}"
    yield f"export STRIPE_API_BASE={url}"
    yield f"export STRIPE_WEBHOOK_SECRET={secret}"


def _usage(url: str, secret: str) -> Iterable[str]:
    yield f"A local Stripe on {url}; it forgets everything when it ends (Ctrl-C)."
    yield "Whoever is to use it instead of Stripe needs:"
    yield from (f"  {line}" for line in _settings(url, secret))
    yield f"Its control API, without a key, is {url}/_sandbox, for example:"
    yield f"  curl {url}/_sandbox/state"
    for path, order in (("clock", {"advance_seconds": 3_600}), ("webhooks", {"url": WEBHOOKS})):
        yield f"  curl --json '{json.dumps(order)}' {url}/_sandbox/{path}"


def _print(lines: Iterable[str]) -> None:
    # Not wrapped: these are lines to copy.
    for line in lines:
        out().print(Text(line), soft_wrap=True)


def _check_host(host: str, *, allow_network: bool) -> None:
    from billing.devtools.stripe_sandbox.server import is_loopback  # noqa: PLC0415 - as above

    try:
        alone = is_loopback(host)
    except OSError as error:
        raise ConfigurationError(
            "--host", f"there is no host {host!r}", "leave it out, or name one of this machine"
        ) from error
    if alone:
        return
    if not allow_network:
        raise ConfigurationError(
            "--host",
            f"others may reach {host}, and the control API asks for no key",
            "leave it out, or add --allow-network where you trust the network",
        )
    warn(f"whoever reaches {host} can change everything in this local Stripe without a key")


def _check_webhook(url: str) -> None:
    if url and (urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname):
        raise ConfigurationError(
            "--webhook", f"{url[:100]!r} is not an address", "name one that begins with http://"
        )


def _unavailable(host: str, port: int, error: OSError) -> ConfigurationError:
    if error.errno == errno.EADDRINUSE:
        return ConfigurationError(
            "--port",
            f"{port} on {host} is in use, perhaps by another local Stripe",
            "end that one, or choose another port; --port 0 takes a free one",
        )
    return ConfigurationError(
        "--port",
        f"cannot listen on {host}:{port}: {error.strerror or error}",
        "choose another address or port; --port 0 takes a free one",
    )
