"""How messages become rows of ``dead_letters``: the same message and reason are one dead letter."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from billing.usage_log.screen import Dead

# One that was replayed and comes again is open again.
_BURY = sa.text(
    """
    INSERT INTO dead_letters AS kept
        (digest, reason, detail, body, event_id, customer_id, task_id, times_seen)
    SELECT digest, reason, detail, body, event_id, customer_id, task_id, times_seen
    FROM unnest(
        CAST(:digests AS bytea[]), CAST(:reasons AS text[]), CAST(:details AS text[]),
        CAST(:bodies AS bytea[]), CAST(:event_ids AS text[]), CAST(:customers AS text[]),
        CAST(:task_ids AS text[]), CAST(:times AS bigint[])
    ) WITH ORDINALITY AS dead (digest, reason, detail, body, event_id, customer_id, task_id,
        times_seen, position)
    ORDER BY position
    ON CONFLICT (digest) DO UPDATE SET
        times_seen = kept.times_seen + excluded.times_seen,
        detail = excluded.detail,
        last_seen_at = now(),
        replayed_at = NULL
    """
)


def digest_of(letter: Dead) -> bytes:
    """What makes two dead letters one: the reason and the body."""
    return hashlib.sha256(letter.reason.value.encode() + b"\x00" + letter.body).digest()


def bury(connection: Connection, letters: Iterable[Dead]) -> None:
    """Keep messages that cannot be logged, each with its reason.

    Args:
        connection: The transaction that is to be committed before they are acknowledged.
        letters: In any order, repeats among them.
    """
    counted = Counter[bytes]()
    latest: dict[bytes, Dead] = {}
    for letter in letters:
        digest = digest_of(letter)
        counted[digest] += 1
        latest[digest] = letter
    if not latest:
        return
    rows = [(digest, latest[digest]) for digest in sorted(latest)]
    connection.execute(
        _BURY,
        {
            "digests": [digest for digest, _ in rows],
            "reasons": [letter.reason.value for _, letter in rows],
            "details": [letter.detail for _, letter in rows],
            "bodies": [letter.body for _, letter in rows],
            "event_ids": [letter.event_id for _, letter in rows],
            "customers": [letter.customer for _, letter in rows],
            "task_ids": [letter.task_id for _, letter in rows],
            "times": [counted[digest] for digest, _ in rows],
        },
    )
