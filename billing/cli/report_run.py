"""``billing report run``: advance everything due, then read back what is due."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated

import typer

from billing.cli.context import Json, container_of
from billing.cli.logs import configure_logs
from billing.cli.output import say, show
from billing.cli.services import Rate, reporting
from billing.container import Container
from billing.health.cause_help import help_for_parked, help_for_stop
from billing.providers.port import VERDICTS, ProviderVerdict
from billing.reporting.read_back import ReadBackResult
from billing.reporting.sender import Advance
from billing.reporting.true_up import Difference
from billing.reporting.usage_report import ReportState


@dataclass(slots=True)
class ReportRun:
    """Results of a run so far; read by the thread that shows them."""

    advance: Advance = field(default_factory=Advance)
    readings: list[ReadBackResult] = field(default_factory=list)
    rate: Rate = field(default_factory=Rate)
    counted: int = 0

    def figures(self) -> dict[str, object]:
        """Figures to show while it runs."""
        became = Counter(self.advance.became)
        sent = sum(became.values())
        self.rate.add(sent - self.counted)
        self.counted = sent
        return {
            "planned": self.advance.planned,
            **{each.value: became[each] for each in _SHOWN},
            "confirmed": sum(each.confirmed for each in self.readings),
            "per_second": round(self.rate.per_second(), 1),
        }

    @property
    def stopped(self) -> dict[str, str]:
        """Reasons why providers stopped us, by what was being done."""
        found = dict(self.advance.stopped)
        for reading in self.readings:
            if reading.stopped:
                found.setdefault("reading back", reading.stopped)
        return found


_SHOWN = (ReportState.ACCEPTED, ReportState.UNKNOWN, ReportState.NEEDS_ATTENTION)


def run(
    context: typer.Context,
    up_to_now: Annotated[
        bool, typer.Option("--up-to-now", help="Also the hour under way, as far as it has come.")
    ] = False,
    confirm: Annotated[
        bool, typer.Option("--confirm/--no-confirm", help="Whether to read back what is due.")
    ] = True,
    seconds: Annotated[
        int | None, typer.Option(help="Begin nothing more after so many seconds.", min=1)
    ] = None,
    json: Json = False,
) -> None:
    """Report everything that is due, then read back what the provider has accepted.

    May be run at any time, by several at once, and be interrupted. Exits with 1 where the provider
    stopped us or a meter is not as it has to be.
    """
    container = container_of(context)
    configure_logs(container.settings.log_level)
    done = ReportRun()
    with reporting("report", done.figures):
        _run(container, done, up_to_now=up_to_now, confirm=confirm, seconds=seconds)
    name = container.settings.provider_name
    show(json, _document(name, done), lambda: _print(name, done))
    if done.stopped or done.advance.blocked:
        raise typer.Exit(1)


def _run(
    container: Container, done: ReportRun, *, up_to_now: bool, confirm: bool, seconds: int | None
) -> None:
    until = None if seconds is None else container.clock.now() + timedelta(seconds=seconds)
    container.reporting.reporter().advance(until=until, up_to_now=up_to_now, into=done.advance)
    if not confirm:
        return
    for reader in container.reporting.readers():
        done.readings.append(reader.confirm(until=until))


def _document(provider: str, done: ReportRun) -> dict[str, object]:
    advance = done.advance
    return {
        "provider": provider,
        "planned": advance.planned,
        "left_behind": advance.left_behind,
        "sent": sum(advance.became.values()),
        "became": dict(sorted(advance.became.items())),
        "causes": dict(sorted(advance.causes.items())),
        "stopped": done.stopped,
        "blocked": advance.blocked,
        "billed_otherwise": advance.differed,
        "read_back": done.readings,
    }


def _print(provider: str, done: ReportRun) -> None:
    advance = done.advance
    sent = sum(advance.became.values())
    became = ", ".join(f"{n:,} {state}" for state, n in sorted(advance.became.items()))
    say(f"reported to {provider}: {advance.planned:,} planned, {sent:,} sent" + _listed(became))
    if advance.left_behind:
        say(f"{advance.left_behind:,} were left behind by a reporter that died; sent again")
    for reading in done.readings:
        _print_reading(reading)
    for cause, n in sorted(advance.causes.items()):
        if VERDICTS[cause] is ProviderVerdict.REFUSED:
            help_ = help_for_parked(cause)
            say(f"parked, {cause} ({n:,}): {help_.meaning}", style="yellow")
            say(f"  remedy: {help_.remedy}")
    _print_differed(advance.differed)
    _print_stops(done.stopped)
    _print_blocked(advance.blocked)


def _listed(text: str) -> str:
    return f" ({text})" if text else ""


def _print_reading(reading: ReadBackResult) -> None:
    parts = {
        "confirmed": reading.confirmed,
        "not yet": reading.waiting,
        "to be sent again": reading.resent,
        "parked": reading.parked,
        "never arrived": reading.cleared,
        "in a final period": reading.closed,
        "requests without an answer": reading.unanswered,
    }
    found = ", ".join(f"{n:,} {name}" for name, n in parts.items() if n)
    say(f"read back: {found or 'nothing was due'}")


def _print_differed(differed: Sequence[Difference]) -> None:
    for each in differed:
        say(
            f"{', '.join(each.invoice_refs)} billed {each.billed_value:,} of {each.customer}'s "
            f"meter {each.meter} until {each.period_end:%Y-%m-%d %H:%M} UTC, and "
            f"{each.accepted_value:,} was accepted: the difference is carried into the hour now",
            style="yellow",
        )


def _print_stops(stopped: Mapping[str, str]) -> None:
    for where, why in stopped.items():
        help_ = help_for_stop(why)
        say(f"stopped ({where}): {why}", style="red")
        say(f"  {help_.meaning}")
        say(f"  remedy: {help_.remedy}")


def _print_blocked(blocked: Mapping[str, str]) -> None:
    for meter, why in sorted(blocked.items()):
        say(f"nothing is sent to the meter {meter}: {why}", style="red")
    if blocked:
        say("  its usage waits and is not lost; the other meters get theirs")
        say("  remedy: billing stripe setup makes what is missing, and says what differs")
