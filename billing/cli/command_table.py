"""Commands that are imported when they are looked up, so that one's extra is no other's need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import typer
from rich.markup import escape

from billing.cli.failures import missing_extra


class CommandTable(Mapping[str, Any]):
    """Commands by name; each is loaded once, at its first look-up.

    A command whose third-party package is not installed is there all the same: its help says which
    extra it needs, and running it fails with that.

    Args:
        modules: By name, ``module:attribute`` in this package; a function or a ``typer.Typer``.
    """

    def __init__(self, modules: Mapping[str, str]) -> None:
        self._modules = modules
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - typer's copy of click is private
        if name not in self._loaded:
            module, _, attribute = self._modules[name].partition(":")
            self._loaded[name] = _load(name, module, attribute)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


def _load(name: str, module: str, attribute: str) -> object:
    group = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="rich")
    try:
        found = getattr(import_module(f".{module}", __package__), attribute)
    except ModuleNotFoundError as error:
        _add_refusal(group, name, error)
    else:
        if isinstance(found, typer.Typer):
            group.add_typer(found, name=name)
        else:
            group.command(name)(found)
    return typer.main.get_group(group).commands[name]


def _add_refusal(group: typer.Typer, name: str, error: ModuleNotFoundError) -> None:
    """Add a command that takes any arguments and fails with ``error``.

    Raises:
        ModuleNotFoundError: What is missing is in no extra.
    """
    message = missing_extra(error)
    if message is None:
        raise error
    anything = {"ignore_unknown_options": True, "allow_extra_args": True}

    @group.command(name, help=escape(message), context_settings=anything, add_help_option=False)
    def refuse() -> None:
        raise error
