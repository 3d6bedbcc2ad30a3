"""The metadata that every table belongs to, the roles, and types that tables share."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_name)s_key",
        "ix": "%(table_name)s_%(column_0_name)s_idx",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)

OWNER_ROLE: Final = "weighbridge_owner"
WRITER_ROLE: Final = "weighbridge_writer"
READER_ROLE: Final = "weighbridge_reader"

instant: Final = sa.TIMESTAMP(timezone=True)
now: Final = sa.text("now()")
total: Final = sa.Numeric(38, 0)
"""Sums of amounts that are each at most 2^53 may pass 2^63; numeric cannot overflow."""
