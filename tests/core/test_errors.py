"""Errors say what happened and what to do."""

from __future__ import annotations

import pytest

from billing.core.errors import (
    ConfigurationError,
    InvalidValue,
    NotFound,
    PublishFailed,
    QuotaUnavailable,
    WeighbridgeError,
)


@pytest.mark.parametrize("kind", [QuotaUnavailable, PublishFailed, WeighbridgeError])
def test_an_error_without_a_message_says_what_its_docstring_says(kind: type[WeighbridgeError]):
    assert str(kind()) == (kind.__doc__ or "").strip()
    assert str(kind("other")) == "other"


def test_an_invalid_value_names_field_value_and_remedy():
    error = InvalidValue("amount", -1, "use zero or more")
    assert str(error) == "amount=-1: use zero or more"
    assert (error.field, error.value, error.remedy) == ("amount", -1, "use zero or more")
    assert isinstance(error, ValueError)


def test_an_invalid_value_is_not_shown_at_full_length():
    assert len(str(InvalidValue("body", "x" * 10_000, "shorten it"))) < 300


def test_a_configuration_error_has_a_remedy():
    error = ConfigurationError("HOLD_TTL_SECONDS", "too short", "make it longer")
    assert str(error) == "HOLD_TTL_SECONDS: too short. Remedy: make it longer"


def test_what_is_not_there_is_named():
    assert str(NotFound("SKU", "x", "add it")) == "no SKU 'x': add it"
