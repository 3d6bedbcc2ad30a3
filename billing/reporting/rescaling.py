"""Whether the scale of a SKU's meter may be changed: to reporting it is another meter then.

What the former meter has taken stays its own (``Holder``), and the new one gets what comes on
top. That is right as long as nobody bills the two apart: a provider that makes invoices itself
closes the periods of each meter by itself, and late usage of a closed period would be sent to the
new meter, whose period nobody bills.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from billing.core.errors import AlreadyExists

BILLS_BY_ITSELF: Final = ("stripe",)
"""Providers that make invoices of what was reported, period by period."""

_STANDING: Final = sa.text(
    """
    SELECT
        count(*) FILTER (WHERE state IN ('pending', 'sending', 'unknown')) AS open,
        count(*) FILTER (WHERE doubtful OR (provider = ANY(:billing)
            AND state IN ('accepted', 'confirmed'))) AS there
    FROM usage_reports WHERE sku_id = :sku
    """
)


def check_rescaling(engine: sa.Engine, sku: str) -> None:
    """Refuse a change of scale that could lose money.

    Raises:
        AlreadyExists: The SKU was reported to a provider that bills by itself, or figures are on
            their way to its meter.
    """
    parameters = {"sku": sku, "billing": list(BILLS_BY_ITSELF)}
    with engine.connect() as connection:
        found = connection.execute(_STANDING, parameters).one()
    if found.there:
        raise AlreadyExists(
            f"SKU {sku!r} was reported already: under another scale, late usage would be billed to "
            "nobody. Add another SKU with the scale (billing skus add --meter-decimals), and let "
            "the tasks use that"
        )
    if found.open:
        raise AlreadyExists(
            f"{found.open} reports of SKU {sku!r} wait to be sent to the meter of the present "
            "scale. At the built-in provider: billing report run first. At Stripe: billing report "
            "park them, change the scale, then billing report unpark ID --never-arrived: so they "
            "are told anew"
        )
