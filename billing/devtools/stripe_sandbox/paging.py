"""Lists as Stripe pages them: newest first, a cursor that is an id."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from billing.devtools.stripe_sandbox import errors
from billing.devtools.stripe_sandbox.errors import JsonObject

DEFAULT_LIMIT: Final = 10
_COMPARED: Final[Mapping[str, Callable[[int, int], bool]]] = {
    "eq": operator.eq,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}


def page(
    objects: Sequence[JsonObject], params: Mapping[str, Any], *, url: str, kind: str
) -> JsonObject:
    """One page of ``objects``, which are given newest first.

    Raises:
        Refusal: A cursor names an object that is not in the list.
    """
    limit: int = params.get("limit", DEFAULT_LIMIT)
    after, before = params.get("starting_after"), params.get("ending_before")
    if after is not None:
        start = _place(objects, after, "starting_after", kind) + 1
        chosen, more = objects[start : start + limit], start + limit < len(objects)
    elif before is not None:
        end = _place(objects, before, "ending_before", kind)
        chosen, more = objects[max(0, end - limit) : end], end > limit
    else:
        chosen, more = objects[:limit], limit < len(objects)
    return {"object": "list", "url": url, "has_more": more, "data": list(chosen)}


def within(instant: int, wanted: Mapping[str, int] | None) -> bool:
    """Whether an instant lies where a list's ``created`` asks for it; None asks for nothing."""
    return all(_COMPARED[name](instant, bound) for name, bound in (wanted or {}).items())


def _place(objects: Sequence[JsonObject], cursor: str, param: str, kind: str) -> int:
    for place, item in enumerate(objects):
        if item["id"] == cursor:
            return place
    raise errors.no_such(kind, cursor, param=param, in_path=False)
