"""Tokens: joserfc with netspace's rules, compared with a second implementation that uses only ``cryptography``."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from hypothesis import given, settings
from hypothesis import strategies as st

from netspace import jose

KIND, LIMIT = "JWT", 4096
KEY, OTHER = (ec.derive_private_key(number, ec.SECP256R1()) for number in (0x5EED, 0xBAD))
PUBLIC = jose.jwk(KEY.public_key())
KID = jose.thumbprint(PUBLIC)
CLAIMS = {"sub": "web1", "iat": 1700000000.5, "name": "Grüße", "list": [1, None, True]}
#: A token of these claims that netspace signed before joserfc did.
EARLIER = (
    "eyJhbGciOiJFUzI1NiIsImtpZCI6ImFPY0I0OTdiU1dsZ0szSC1nSnZ6ejY2Q2hTYWZNeWlLZXI4SUJsbWxvV0UiLCJ0eXAiOiJKV1QifQ."
    "eyJpYXQiOjE3MDAwMDAwMDAuNSwibGlzdCI6WzEsbnVsbCx0cnVlXSwibmFtZSI6IkdyXHUwMGZjXHUwMGRmZSIsInN1YiI6IndlYjEifQ."
    "ymoChN25pQXBVvcSAFOAa0TGuMqJ2-idlfzXxceyezuXKlQd4IAXu2wuylHC1gXpIMS4lTBujXOzAXGW-vOCZQ"
)


def raw(key: ec.EllipticCurvePrivateKey, signed: bytes) -> bytes:
    r, s = utils.decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# -- the second reading --------------------------------------------------------------------------
def decoded(part: str) -> bytes:
    found = base64.urlsafe_b64decode(part.encode("ascii") + b"=" * (-len(part) % 4))
    if encoded(found) != part:
        raise ValueError("another spelling")
    return found


def read_once(document: bytes) -> dict[str, Any]:
    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in found}) < len(found):
            raise ValueError("a name twice")
        return dict(found)

    found = json.loads(document, object_pairs_hook=pairs, parse_constant=int)
    if not isinstance(found, dict):
        raise ValueError("no object")
    return found


def second_reading(token: str) -> dict[str, Any] | None:
    """Return the claims of a token of ``KEY`` by the second implementation; None if the token is refused."""
    try:
        if len(token) > LIMIT:
            return None
        head, body, signature = token.split(".")
        if read_once(decoded(head)) != {"alg": "ES256", "kid": KID, "typ": KIND}:
            return None
        both, claims = decoded(signature), decoded(body)
        if len(both) != 64:
            return None
        der = utils.encode_dss_signature(int.from_bytes(both[:32], "big"), int.from_bytes(both[32:], "big"))
        KEY.public_key().verify(der, f"{head}.{body}".encode(), ec.ECDSA(hashes.SHA256()))
        return read_once(claims)
    except (ValueError, binascii.Error, InvalidSignature, RecursionError):
        return None


def first_reading(token: Any) -> dict[str, Any] | None:
    try:
        return jose.opened(token, KIND, [PUBLIC], LIMIT)
    except (jose.Unreadable, jose.Forged):
        return None


# -- hostile tokens --------------------------------------------------------------------------------
GENUINE = json.dumps({"alg": "ES256", "kid": KID, "typ": KIND})
HEADERS = st.sampled_from(
    [
        GENUINE,
        GENUINE,
        json.dumps({"typ": KIND, "alg": "ES256", "kid": KID}, indent=1),
        GENUINE.replace("alg", "\\u0061lg"),
        '{"alg":"none",' + GENUINE[1:],
        GENUINE[:-1] + ',"kid":"' + KID + '"}',
        GENUINE[:-1] + ',"crit":["b64"],"b64":false}',
        GENUINE[:-1] + ',"b64":true}',
        GENUINE[:-1] + ',"jwk":' + json.dumps(PUBLIC) + "}",
        GENUINE[:-1] + ',"zip":"DEF"}',
        GENUINE.replace("ES256", "none"),
        GENUINE.replace("ES256", "HS256"),
        GENUINE.replace("ES256", "ES384"),
        GENUINE.replace("ES256", "es256"),
        GENUINE.replace(KIND, "netspace-policy"),
        GENUINE.replace(KID, "x" * 600),
        json.dumps({"alg": "ES256", "typ": KIND}),
        json.dumps({"alg": ["ES256"], "kid": KID, "typ": KIND}),
        f"[{GENUINE}]",
        "NaN",
        "",
    ]
)
BODIES = st.sampled_from(
    [
        '{"a":1}',
        '{"a":1}',
        '{"a":1,"a":2}',
        '{"a":[{"b":1,"\\u0062":2}]}',
        '{"a":NaN}',
        '{"a":1e999}',
        '{"a":"\\ud800"}',
        "[1]",
        '"a"',
        "",
        "{" * 900,
        '{"a":"' + "x" * 4000 + '"}',
    ]
)
SPELLINGS = st.sampled_from(
    [
        lambda part: part,
        lambda part: part,
        lambda part: part,
        lambda part: part + "=" * (-len(part) % 4),
        lambda part: part + "====",
        lambda part: part.replace("-", "+").replace("_", "/"),
        lambda part: part[:-1] + chr(ord(part[-1]) + 1) if part else part,
        lambda part: part[:3] + "\n" + part[3:],
        lambda part: part + " ",
        lambda part: part + "é",
        lambda part: part + "A",
    ]
)
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
SIGNATURES = st.sampled_from(
    [
        lambda both: both,
        lambda both: both,
        lambda both: both[:32] + (ORDER - int.from_bytes(both[32:], "big")).to_bytes(32, "big"),
        lambda both: both[32:] + both[:32],
        lambda both: bytes(64),
        lambda both: both[:63],
        lambda both: both + b"\0",
        lambda both: b"\0" + both[:32] + b"\0" + both[32:],
        lambda both: utils.encode_dss_signature(int.from_bytes(both[:32], "big"), int.from_bytes(both[32:], "big")),
        lambda both: b"",
        lambda both: bytes([both[0] ^ 1]) + both[1:],
    ]
)


@st.composite
def hostile(draw: st.DrawFn) -> str:
    """Make a token with a good signature over its exact bytes, so that only a rule can refuse it."""
    head = draw(SPELLINGS)(encoded(draw(HEADERS).encode()))
    body = draw(SPELLINGS)(encoded(draw(BODIES).encode()))
    both = raw(draw(st.sampled_from([KEY, KEY, KEY, OTHER])), f"{head}.{body}".encode())
    signature = draw(SPELLINGS)(encoded(draw(SIGNATURES)(both)))
    return draw(st.sampled_from(["{}.{}.{}"] * 9 + ["{}..{}{}", "{}.{}.{}.", ".{}.{}.{}"])).format(
        head, body, signature
    )


@settings(max_examples=500, deadline=None)
@given(hostile())
def test_joserfc_and_a_second_reading_agree_on_hostile_tokens(token: str) -> None:
    assert first_reading(token) == second_reading(token)


@pytest.mark.parametrize("token", [jose.sign(KEY, KIND, CLAIMS), EARLIER])
def test_both_readings_take_a_genuine_token(token: str) -> None:
    assert first_reading(token) == second_reading(token) == CLAIMS


# -- compatibility -----------------------------------------------------------------------------------
def test_earlier_tokens_stay_valid_and_bytes_stay_equal() -> None:
    assert jose.opened(EARLIER, KIND, [PUBLIC], LIMIT) == CLAIMS
    assert jose.sign(KEY, KIND, CLAIMS).rpartition(".")[0] == EARLIER.rpartition(".")[0]


def test_a_coordinate_with_leading_zeros_keeps_its_length() -> None:
    short = ec.derive_private_key(43, ec.SECP256R1())
    found = jose.jwk(short.public_key())
    assert [len(found[name]) for name in ("x", "y")] == [43, 43]
    assert found["x"].startswith("A") or found["y"].startswith("A")
    assert jose.parse_jwk(found) == found
    assert jose.opened(jose.sign(short, KIND, CLAIMS), KIND, [found], LIMIT) == CLAIMS


@pytest.mark.parametrize(("limit", "taken"), [(len(EARLIER), True), (len(EARLIER) - 1, False)])
def test_a_token_beyond_its_bound_is_unreadable(limit: int, taken: bool) -> None:
    if taken:
        assert jose.opened(EARLIER, KIND, [PUBLIC], limit) == CLAIMS
        return
    with pytest.raises(jose.Unreadable, match=f"at most {limit} bytes"):
        jose.opened(EARLIER, KIND, [PUBLIC], limit)


def test_a_point_that_is_not_on_the_curve_is_no_key() -> None:
    with pytest.raises(jose.Unreadable):
        jose.parse_jwk({**PUBLIC, "y": PUBLIC["x"]})
