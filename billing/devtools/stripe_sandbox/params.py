"""Parameters: decoding Stripe's nested forms, and what each endpoint takes.

A ``Shape`` names every parameter of an endpoint in Stripe's description: those acted on, with a
check each, and those that are not, which are refused by name. Anything else is unknown to Stripe.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, Final
from urllib.parse import parse_qsl

from billing.devtools.stripe_sandbox import errors

Check = Callable[[str, object], Any]
"""Turns what came under a name into its value, or raises a ``Refusal``."""

_STEP: Final = re.compile(r"\[([^\[\]]*)\]")
_PLAIN_DECIMAL: Final = re.compile(r"-?\d+(\.\d+)?\Z")
_METADATA_KEYS: Final = 50
_METADATA_KEY: Final = 40
_METADATA_VALUE: Final = 500


def decode_form(text: str) -> dict[str, Any]:
    """The nested parameters of a form or query: ``a[b]=1&c[0]=2`` is ``{a: {b: 1}, c: [2]}``."""
    root: dict[str, Any] = {}
    for name, value in parse_qsl(text, keep_blank_values=True):
        head, bracket, rest = name.partition("[")
        steps = [head, *_STEP.findall(bracket + rest)]
        node = root
        for step in steps[:-1]:
            child = node.setdefault(step, {})
            if not isinstance(child, dict):
                child = node[step] = {}
            node = child
        last = steps[-1] or str(len(node))
        node[last] = value
    return {name: _lists(value) for name, value in root.items()}


def _lists(value: object) -> object:
    if not isinstance(value, dict):
        return value
    if value and all(key.isdecimal() for key in value):
        return [_lists(value[key]) for key in sorted(value, key=int)]
    return {key: _lists(item) for key, item in value.items()}


@dataclass(frozen=True, slots=True)
class Shape:
    """The parameters of one endpoint (or of one object inside them).

    ``takes`` are acted on, ``required`` of those must be there, ``knows`` are Stripe's others.
    """

    takes: Mapping[str, Check] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    knows: frozenset[str] = frozenset()

    def read(self, given: Mapping[str, Any], *, inside: str = "") -> dict[str, Any]:
        """The checked values of ``given``.

        Raises:
            Refusal: Something is unknown, missing or not what it has to be.
        """

        def named(name: str) -> str:
            return f"{inside}[{name}]" if inside else name

        strange = [named(name) for name in given if name not in self.takes.keys() | self.knows]
        if strange:
            raise errors.unknown(strange)
        for name in sorted(self.required):
            if name not in given:
                raise errors.missing(named(name))
        for name in given:
            if name in self.knows:
                raise errors.not_implemented(named(name))
        return {name: self.takes[name](named(name), value) for name, value in given.items()}


def _scalar(name: str, raw: object) -> str:
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, int | str):
        return str(raw)
    raise errors.parameter("Invalid string: expected a single value.", name)


def text(maximum: int = 5000, *, empty: bool = False) -> Check:
    """A string of at most ``maximum`` characters; an empty one only where a field may be unset."""

    def check(name: str, raw: object) -> str | None:
        value = _scalar(name, raw)
        if not value:
            if empty:
                return None
            raise errors.parameter(
                f"You passed an empty string for '{name}'. We assume empty values are an attempt "
                f"to unset a field; however '{name}' cannot be unset. You should remove '{name}' "
                "from your request or supply a non-empty value.",
                name,
                "parameter_invalid_empty",
            )
        if len(value) > maximum:
            shown = f"{value[:10]}...{value[-4:]}"
            raise errors.parameter(
                f"Invalid string: {shown}; must be at most {maximum} characters", name
            )
        return value

    return check


def integer(minimum: int | None = None, maximum: int | None = None) -> Check:
    """A whole number within bounds."""

    def check(name: str, raw: object) -> int:
        value = _scalar(name, raw)
        try:
            number = int(value) if re.fullmatch(r"-?\d+", value) else None
        except ValueError:
            number = None
        if number is None:
            raise errors.parameter(f"Invalid integer: {value}", name, "parameter_invalid_integer")
        if minimum is not None and number < minimum:
            raise errors.parameter(
                f"This value must be greater than or equal to {minimum}.",
                name,
                "parameter_invalid_integer",
            )
        if maximum is not None and number > maximum:
            raise errors.parameter(
                f"This value must be less than or equal to {maximum}.",
                name,
                "parameter_invalid_integer",
            )
        return number

    return check


def boolean(name: str, raw: object) -> bool:
    """``true`` or ``false``."""
    value = _scalar(name, raw)
    if value not in {"true", "false"}:
        raise errors.parameter(f"Invalid boolean: {value}", name)
    return value == "true"


def choice(*words: str) -> Check:
    """One of a few words."""

    def check(name: str, raw: object) -> str:
        value = _scalar(name, raw)
        if value not in words:
            listed = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
            raise errors.parameter(f"Invalid {name}: must be one of {listed}", name)
        return value

    return check


def currency(name: str, raw: object) -> str:
    """A three-letter currency code, given back in lower case as Stripe does."""
    value = _scalar(name, raw).lower()
    if not re.fullmatch(r"[a-z]{3}", value):
        raise errors.parameter(f"Invalid currency: {value}.", name)
    return value


def decimal(places: int = 12) -> Check:
    """A decimal string without exponent and with at most ``places`` decimals."""

    def check(name: str, raw: object) -> Decimal:
        value = _scalar(name, raw)
        number = plain_decimal(value)
        if number is None:
            raise errors.parameter(f"Invalid decimal: {value}", name)
        if -int(number.as_tuple().exponent) > places:
            raise errors.parameter(
                f"Invalid decimal: {value}; must contain at most {places} decimal places.", name
            )
        return number

    return check


def plain_decimal(value: str) -> Decimal | None:
    """The number of digits with at most one point; None for anything else, exponents included."""
    if not _PLAIN_DECIMAL.match(value):
        return None
    try:
        return Decimal(value)
    except InvalidOperation:  # pragma: no cover - the pattern admits only decimals
        return None


def strings(name: str, raw: object) -> dict[str, str]:
    """A map of strings."""
    if not isinstance(raw, dict) or not raw:
        raise errors.parameter("Invalid object", name)
    return {key: _scalar(f"{name}[{key}]", value) for key, value in raw.items()}


def metadata(name: str, raw: object) -> dict[str, str]:
    """Up to 50 keys of 40 with values of 500 characters; an empty string unsets them all."""
    if raw == "":
        return {}
    values = strings(name, raw)
    if len(values) > _METADATA_KEYS:
        raise errors.parameter(f"You can specify up to {_METADATA_KEYS} keys.", name)
    for key, value in values.items():
        if len(key) > _METADATA_KEY:
            raise errors.parameter(
                f"Metadata keys must be at most {_METADATA_KEY} characters long.", name
            )
        if len(value) > _METADATA_VALUE:
            raise errors.parameter(
                f"Metadata values must be at most {_METADATA_VALUE} characters long.",
                f"{name}[{key}]",
            )
    return values


def texts(name: str, raw: object) -> list[str]:
    """A list of strings."""
    if not isinstance(raw, list) or not raw:
        raise errors.parameter("Invalid array", name)
    return [_scalar(f"{name}[{place}]", value) for place, value in enumerate(raw)]


def nested(shape: Shape) -> Check:
    """An object of its own shape."""

    def check(name: str, raw: object) -> dict[str, Any]:
        if not isinstance(raw, dict):
            raise errors.parameter("Invalid object", name)
        return shape.read(raw, inside=name)

    return check


UNIX_TIME: Final = integer(minimum=0)
_BOUNDS: Final = nested(Shape(dict.fromkeys(("gt", "gte", "lt", "lte"), UNIX_TIME)))


def interval(name: str, raw: object) -> Mapping[str, int]:
    """An interval of a list: bounds by their names (``gte``), or one instant (``eq``)."""
    found: Mapping[str, int] = (
        _BOUNDS(name, raw) if isinstance(raw, dict) else {"eq": UNIX_TIME(name, raw)}
    )
    return found


PAGING: Final[Mapping[str, Check]] = {
    "limit": integer(minimum=1, maximum=100),
    "starting_after": text(),
    "ending_before": text(),
}
EXPAND: Final = frozenset({"expand"})


def shape(
    takes: Mapping[str, Check] | None = None, *, required: str = "", knows: str = ""
) -> Shape:
    """A v1 shape: ``required`` and ``knows`` as words; ``expand`` is known everywhere."""
    return Shape(takes or {}, frozenset(required.split()), frozenset(knows.split()) | EXPAND)
