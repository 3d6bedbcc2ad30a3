"""What became of the tasks, as Celery tells whoever asks for their results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from lab.demo.submission import Submitted, Ticket
from workers.errors import QuotaExceeded

_AT_ONCE: Final = 500
_READY: Final = frozenset({"SUCCESS", "FAILURE", "REVOKED"})


class Backend(Protocol):
    """What is asked of Celery's Redis result backend."""

    def get_key_for_task(self, task_id: str) -> Any:
        """The key of a result."""
        ...

    def get_key_for_group(self, group_id: str, key: str) -> Any:
        """The key of something about a group."""
        ...

    def mget(self, keys: list[Any]) -> list[Any]:
        """Several values at once; None where there is none."""
        ...

    def decode_result(self, payload: Any) -> Mapping[str, Any]:
        """A stored value, with an exception where the task raised one."""
        ...


@dataclass(frozen=True, slots=True)
class End:
    """How a task ended: ``succeeded``, ``failed`` or ``denied``; ``reason`` says why not well."""

    outcome: str
    reason: str = ""


def tally(ends: Counter[End], outcome: str) -> int:
    """How many ended so, for whatever reason."""
    return sum(count for end, count in ends.items() if end.outcome == outcome)


def reasons(ends: Counter[End], outcome: str) -> dict[str, int]:
    """The reasons of those that ended so, with how many each."""
    return {
        end.reason: count for end, count in sorted(ends.items(), key=str) if end.outcome == outcome
    }


def end_of(state: str, result: object) -> End:
    """How a task ended, from its stored state and result."""
    if state == "SUCCESS":
        return End("succeeded")
    if isinstance(result, QuotaExceeded):
        return End("denied", result.reason)
    return End("failed", type(result).__name__)


class Results:
    """Collects results, few questions at a time.

    Args:
        backend: Where they are.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._tickets: dict[str, Ticket] = {}
        self._bodies: dict[str, str] = {}
        self._groups: list[str] = []
        self._pending: set[str] = set()
        self.ends: dict[str, End] = {}
        """By task id; the chords' bodies are among them."""

    def expect(self, submitted: Submitted) -> None:
        """Wait for these, too."""
        self._tickets |= {ticket.task_id: ticket for ticket in submitted.tickets}
        self._bodies |= submitted.bodies
        self._groups += submitted.groups
        self._pending |= {ticket.task_id for ticket in submitted.tickets} | submitted.bodies.keys()

    @property
    def tickets(self) -> list[Ticket]:
        """Every task submitted so far, without the chords' bodies."""
        return list(self._tickets.values())

    @property
    def pending(self) -> int:
        """How many have no result yet."""
        return len(self._pending)

    def ask(self) -> int:
        """Ask for what is pending; how many results came."""
        asked = sorted(self._pending)
        before = len(asked)
        for start in range(0, before, _AT_ONCE):
            self._ask_some(asked[start : start + _AT_ONCE])
        return before - len(self._pending)

    def by_customer(self) -> dict[str, Counter[End]]:
        """How many tasks of each customer ended how."""
        counted: dict[str, Counter[End]] = {}
        for task_id, ticket in self._tickets.items():
            if task_id in self.ends:
                counted.setdefault(ticket.customer, Counter())[self.ends[task_id]] += 1
        return counted

    def broken_chords(self) -> Counter[str]:
        """How many chords of each customer failed."""
        return Counter(
            customer
            for task_id, customer in self._bodies.items()
            if task_id in self.ends and self.ends[task_id].outcome != "succeeded"
        )

    def keys(self) -> list[str]:
        """The backend's keys of all results; those with a ``*`` are patterns."""
        backend = self._backend
        asked = [backend.get_key_for_task(each) for each in (*self._tickets, *self._bodies)]
        # A chord keeps its count and its members' results under several endings.
        asked += [backend.get_key_for_group(each, "*") for each in self._groups]
        return [key.decode() if isinstance(key, bytes) else str(key) for key in asked]

    def _ask_some(self, task_ids: Iterable[str]) -> None:
        asked = list(task_ids)
        stored = self._backend.mget([self._backend.get_key_for_task(each) for each in asked])
        for task_id, payload in zip(asked, stored, strict=True):
            if payload is None:
                continue
            meta = self._backend.decode_result(payload)
            if meta["status"] in _READY:
                self.ends[task_id] = end_of(meta["status"], meta["result"])
                self._pending.discard(task_id)
