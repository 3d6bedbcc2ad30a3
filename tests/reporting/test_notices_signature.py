"""Which webhooks are believed: signed with one of our secrets, over these bytes, about now."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import pytest
import stripe
from hypothesis import given
from hypothesis import strategies as st
from support import NOW

from billing.core.errors import ConfigurationError
from billing.stripe_webhooks.signature import (
    TOLERANCE,
    Unsigned,
    check_signature,
    secrets_of,
)

SECRET = "whsec_ours"
BODY = json.dumps({"id": "evt_1", "name": "Zoë"}).encode()
SIGNED = NOW.replace(microsecond=0)


def header(
    body: bytes = BODY, secret: str = SECRET, at: datetime = SIGNED, text: str | None = None
) -> str:
    payload = body.decode() if text is None else text
    made = stripe.WebhookSignature.generate_signature_header(payload, secret, int(at.timestamp()))
    return str(made)


def check(
    body: bytes = BODY, given: str | None = None, secrets: tuple[str, ...] = (SECRET,)
) -> datetime:
    return check_signature(body, header() if given is None else given, secrets, SIGNED)


def test_what_was_signed_now_is_believed():
    assert check() == SIGNED


@given(st.binary(max_size=200), st.integers(0, 7), st.data())
def test_one_changed_bit_is_noticed(body: bytes, bit: int, data: st.DataObject):
    signed = b'{"id": 1}' + body.hex().encode()
    place = data.draw(st.integers(0, len(signed) - 1))
    changed = bytearray(signed)
    changed[place] ^= 1 << bit
    given = header(signed)
    assert check(signed, given) == SIGNED
    with pytest.raises(Unsigned, match="no signature fits"):
        check(bytes(changed), given)


@pytest.mark.parametrize(
    ("seconds", "reason"),
    [
        (0, None),
        (-300, None),
        (300, None),
        (-301, "more than five minutes old"),
        (301, "more than five minutes ahead"),
        (-86_400, "more than five minutes old"),
        (86_400, "more than five minutes ahead"),
    ],
)
def test_a_signature_is_believed_for_five_minutes_either_way(seconds: int, reason: str | None):
    given = header(at=SIGNED + timedelta(seconds=seconds))
    if reason is None:
        assert check(given=given) == SIGNED + timedelta(seconds=seconds)
        return
    with pytest.raises(Unsigned, match=reason):
        check(given=given)
    assert timedelta(seconds=300) == TOLERANCE


def test_another_time_than_the_signed_one_is_no_way_past_the_age():
    old = header(at=SIGNED - timedelta(days=1)).partition(",")
    now = f"t={int(SIGNED.timestamp())}"
    with pytest.raises(Unsigned, match="no signature fits"):
        check(given=f"{now},{old[2]}")
    for both in (f"{now},{old[0]},{old[2]}", f"{old[0]},{now},{old[2]}"):
        with pytest.raises(Unsigned, match="is not t="):
            check(given=both)


def test_any_of_several_secrets_may_have_signed():
    others = ("whsec_old", SECRET, "whsec_new")
    assert check(secrets=others) == SIGNED
    with pytest.raises(Unsigned, match="another secret"):
        check(secrets=("whsec_old", "whsec_new"))


def test_any_of_several_signatures_may_fit():
    at, _, right = header().partition(",")
    wrong = header(secret="whsec_old").partition(",")[2]
    assert check(given=f"{at},{wrong},{right}") == SIGNED
    assert check(given=f"{at},{right},{wrong},v0=00") == SIGNED


@pytest.mark.parametrize(
    "given",
    [
        "t=1",
        "v1=00",
        "t=,v1=00",
        "t=x,v1=00",
        "t=-1,v1=00",
        "t=1e9,v1=00",
        "t=99999999999999,v1=00",
        "t=١٢,v1=00",
        f"t={int(SIGNED.timestamp())},v1=ü",
        f"t={int(SIGNED.timestamp())},v0=00",
        "garbage",
        ",,,",
        "=",
    ],
)
def test_a_header_that_is_none_is_refused(given: str):
    with pytest.raises(Unsigned):
        check(given=given)


def test_no_header_is_said_as_such():
    with pytest.raises(Unsigned, match="no Stripe-Signature header"):
        check(given="")


def test_the_scheme_without_a_secret_is_not_believed():
    scheme = header().replace("v1=", "v0=")
    with pytest.raises(Unsigned):
        check(given=scheme)


def test_bytes_that_are_no_text_are_refused_and_not_a_crash():
    with pytest.raises(Unsigned, match="no signature fits"):
        check(b"\xff\xfe", header(text="??"))


@pytest.mark.parametrize(
    ("setting", "secrets"),
    [
        ("", ()),
        (" , ", ()),
        ("whsec_a", ("whsec_a",)),
        ("whsec_a, whsec_b,", ("whsec_a", "whsec_b")),
    ],
)
def test_secrets_are_separated_by_commas(setting: str, secrets: tuple[str, ...]):
    assert secrets_of(setting) == secrets


@pytest.mark.parametrize(
    "setting", ["sk_test_123", "whsec_a\x00", "whsec_a;whsec_b c", '"whsec_a"']
)
def test_what_is_no_signing_secret_is_refused_and_not_shown(setting: str):
    with pytest.raises(ConfigurationError, match="STRIPE_WEBHOOK_SECRET") as caught:
        secrets_of(setting)
    assert setting not in str(caught.value)
