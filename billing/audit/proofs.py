"""Proofs that one line of a receipt is under a seal, for ``scripts/check_proof.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

from sqlalchemy.engine import Engine

from billing.audit.merkle import path_of
from billing.audit.month_rows import HOUR, MonthOfLog
from billing.audit.seal_chain import Leaves, Seal
from billing.audit.sealer import LAG, seals_of_hour, waiting_leaves
from billing.core.clock import format_instant, to_ms
from billing.core.errors import InvalidValue, NotFound, WeighbridgeError
from billing.core.event_ids import hour_of, instant_of
from billing.core.periods import Period, month_of
from billing.core.row_hash import document_of, leaf_of

FORM: Final = 1


class NotAsSealedError(WeighbridgeError):
    """A row is not what was sealed, so that nothing can be proved of it."""


class Prover:
    """Makes proofs of inclusion.

    Args:
        engine: Any that may read.
        open_month: Opens a month's rows, in the database or in its archive.
    """

    def __init__(self, engine: Engine, open_month: Callable[[Period], MonthOfLog]) -> None:
        self._engine = engine
        self._open_month = open_month

    def proof(self, identifier: UUID) -> dict[str, Any]:
        """Make the proof of one line, a JSON document. Of other lines it has hashes only.

        Args:
            identifier: The line's event id.

        Raises:
            NotFound: There is no such line, or no seal over it yet.
            NotAsSealedError: The line, or the leaves under its seal, changed.
            InvalidValue: It is no event id.
        """
        try:
            instant_of(identifier)
        except (InvalidValue, OverflowError):
            remedy = "use the event_id of a receipt's line"
            raise InvalidValue("EVENT_ID", str(identifier), remedy) from None
        hour = hour_of(identifier)
        month = self._open_month(month_of(hour))
        with self._engine.connect() as connection:
            seals = {seal.number: seal for seal in seals_of_hour(connection, hour)}
        for leaves in month.leaves(hour):
            index = leaves.index_of(identifier.bytes)
            if index is not None and leaves.number in seals:
                return self._proof(month, identifier, seals[leaves.number], leaves, index)
        raise self._unsealed(identifier)

    def _proof(
        self, month: MonthOfLog, identifier: UUID, seal: Seal, leaves: Leaves, index: int
    ) -> dict[str, Any]:
        row = month.named([identifier]).get(identifier)
        hashes = leaves.split()
        fault = leaves.fault(seal)
        if fault is not None:
            raise NotAsSealedError(f"seal {seal.number}: {fault}; see: billing verify")
        if row is None or leaf_of(row) != hashes[index]:
            what = "is gone" if row is None else "was changed"
            raise NotAsSealedError(f"row {identifier} {what} after it was sealed; billing verify")
        return {
            "form": FORM,
            "line": document_of(row),
            "index": index,
            "path": [each.hex() for each in path_of(hashes, index)],
            "seal": {
                "number": seal.number,
                "hour_ms": to_ms(seal.hour),
                "sealed_ms": to_ms(seal.sealed_at),
                "rows": seal.rows,
                "adopted": seal.adopted,
                "previous": seal.previous.hex(),
                "root": seal.root.hex(),
                "hash": seal.hash.hex(),
            },
        }

    def _unsealed(self, identifier: UUID) -> WeighbridgeError:
        hour = hour_of(identifier)
        with self._engine.connect() as connection:
            waiting = waiting_leaves(connection, hour)
        if any(leaves.index_of(identifier.bytes) is not None for leaves in waiting):
            due = format_instant(hour + HOUR + LAG)
            return NotFound(
                "seal over event", str(identifier), f"it is logged, and is sealed after {due}"
            )
        return NotFound("event", str(identifier), "see: billing receipt --task TASK_ID")
