"""Seals: only the receiver opens a sealed message, once and unchanged; all other messages are refused."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joserfc import jwe, jws
from joserfc.jwk import ECKey, OctKey

from netspace_client import CardError, SealError, jose, seal
from netspace_client.errors import UnknownKey
from netspace_client.jose import MAX_BODY, MAX_SEALED
from netspace_client.keys import Ring, ring
from netspace_client.seal import LIFE, Envelope, open_sealed
from netspace_client.window import Window

STEADY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
NOW = 1_800_000_000.0
LETTER = Envelope("web.orders", "web", "orders", "message", "id-1")


def made(name: str, since: float = 0.0) -> list[dict]:
    """Return both keys of an environment, in the form of the host's file."""
    return [
        {
            **ECKey.generate_key("P-256").as_dict(private=True),
            "kid": f"{name}-{use}-{since:g}",
            "use": use,
            "nbf": since,
        }
        for use in ("sig", "enc")
    ]


KEYS = {name: made(name) for name in ("web", "orders", "mallory")}
MINE = {name: ring(keys, "keys", private=True) for name, keys in KEYS.items()}
THEIRS = {name: ring(keys, "keys") for name, keys in KEYS.items()}


def sealed(body: bytes = b"secret", envelope: Envelope = LETTER, by="web", to="orders", now: float = NOW) -> bytes:
    return seal.seal(body, "text/plain", envelope, MINE[by], THEIRS[to], now)


def opened(raw: bytes, envelope: Envelope = LETTER, by="web", to="orders", now: float = NOW):
    return open_sealed(raw, envelope, MINE[to], THEIRS[by], now)


def key(keys: Ring, use: str) -> ECKey:
    return ECKey.import_key(dict(next(one for one in keys.keys if one.use == use).jwk))


@STEADY
@given(st.binary(max_size=2000), st.text(max_size=40))
def test_what_is_sealed_is_opened_as_it_was(body, kind):
    raw = seal.seal(body, kind, LETTER, MINE["web"], THEIRS["orders"], NOW)
    assert opened(raw) == seal.Opened(body, kind, NOW)
    if len(body) > 8:
        assert body not in raw
        assert base64.urlsafe_b64encode(body)[:10] not in raw


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Envelope)])
def test_nothing_outside_can_be_changed(name):
    """A message is refused if link, sender, receiver, kind, id or question differ from those at its sealing."""
    raw = sealed()
    with pytest.raises(SealError, match="it was sealed as"):
        opened(raw, dataclasses.replace(LETTER, **{name: "another"}))


def test_only_the_receiver_opens_it_and_only_the_senders_is_taken():
    with pytest.raises(UnknownKey):
        opened(sealed(), to="mallory")
    with pytest.raises(UnknownKey):
        opened(sealed(by="mallory"))
    # With the name of the right key, but not the key.
    for use, holder in (("enc", "to"), ("sig", "by")):
        false = [
            {**one, **({"kid": f"orders-{use}-0"} if use == "enc" else {"kid": f"web-{use}-0"})}
            for one in KEYS["mallory"]
        ]
        MINE["false"], THEIRS["false"] = ring(false, "keys", private=True), ring(false, "keys")
        with pytest.raises(SealError, match=r"decrypted|signature"):
            opened(sealed(**{holder: "false"}))


def test_a_seal_holds_for_its_time():
    raw = sealed()
    assert opened(raw, now=NOW + LIFE - 1).body == b"secret"
    assert opened(raw, now=NOW - seal.SKEW).body == b"secret"
    for now in (NOW + LIFE + 1, NOW - seal.SKEW - 1):
        with pytest.raises(SealError, match="not valid now"):
            opened(raw, now=now)


def forged(signed: dict, wrapped: dict | None = None, key_to_sign: ECKey | OctKey | None = None) -> bytes:
    """Return a seal made with its sender's own keys, but with other headers."""
    header = {"alg": "ES256", "kid": "web-sig-0", "typ": "netspace-seal", "cty": "t", "lnk": "web.orders", "frm": "web"}
    header |= {"to": "orders", "use": "message", "jti": "id-1", "cid": "", "iat": NOW, "exp": NOW + 60, **signed}
    header = {name: value for name, value in header.items() if value is not ...}
    loose = jws.JWSRegistry(algorithms=["ES256", "HS256"], strict_check_header=False)
    inner = jws.serialize_compact(header, b"x", key_to_sign or key(MINE["web"], "sig"), registry=loose)
    outer = {"alg": "ECDH-ES+A256KW", "enc": "A256GCM", "kid": "orders-enc-0", **(wrapped or {})}
    ways = ["ECDH-ES", "ECDH-ES+A256KW", "A256GCM", "A128GCM", "DEF"]
    loose_too = jwe.JWERegistry(algorithms=ways, strict_check_header=False)
    return jwe.encrypt_compact(outer, inner, key(THEIRS["orders"], "enc"), registry=loose_too).encode()


def test_a_forgery_differs_from_a_seal_by_its_header_alone():
    assert opened(forged({})).body == b"x"


@pytest.mark.parametrize(
    ("signed", "wrapped"),
    [
        ({"iat": True}, {}),
        ({"iat": "now"}, {}),
        ({"iat": float("nan")}, {}),
        ({"iat": 10**400}, {}),
        ({"iat": -(10**400)}, {}),
        ({"iat": NOW - 10, "exp": 10**400}, {}),
        ({"iat": float("-inf")}, {}),
        ({"exp": float("inf")}, {}),
        ({"exp": NOW + 2 * LIFE}, {}),
        ({"exp": ...}, {}),
        ({"jti": ...}, {}),
        ({"jti": 7}, {}),
        ({"typ": "JWT"}, {}),
        ({"extra": 1}, {}),
        ({}, {"alg": "ECDH-ES"}),
        ({}, {"enc": "A128GCM"}),
        ({}, {"zip": "DEF"}),
        ({}, {"extra": 1}),
        ({}, {"kid": "web-enc-0"}),
    ],
)
def test_what_isnt_sealed_as_we_seal_is_refused(signed, wrapped):
    with pytest.raises(SealError):
        opened(forged(signed, wrapped))


def test_a_signature_by_the_public_key_as_a_shared_secret_is_refused():
    """A signature by HS256 with the public key as its secret is refused: a classic attack on JOSE."""
    public = json.dumps(dict(THEIRS["web"].keys[0].jwk)).encode()
    with pytest.raises(SealError, match="signed in another way"):
        opened(forged({"alg": "HS256"}, key_to_sign=OctKey.import_key(public)))


def test_what_was_only_encrypted_or_only_signed_is_refused():
    outer = {"alg": "ECDH-ES+A256KW", "enc": "A256GCM", "kid": "orders-enc-0"}
    ways = jwe.JWERegistry(algorithms=["ECDH-ES+A256KW", "A256GCM"])
    raw = jwe.encrypt_compact(outer, b"text", key(THEIRS["orders"], "enc"), registry=ways).encode()
    with pytest.raises(SealError, match="isn't signed"):
        opened(raw)
    with pytest.raises(SealError, match="isn't sealed"):
        opened(jws.serialize_compact({"alg": "ES256"}, b"x", key(MINE["web"], "sig")).encode())
    with pytest.raises(SealError, match="isn't sealed"):
        opened(b"plain text")


@STEADY
@given(st.data())
def test_no_change_of_a_seal_gets_through(data):
    raw = bytearray(sealed())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    changed = bytes(raw)
    with contextlib.suppress(SealError):
        # The last character of a segment has bits that mean nothing: then it is the same still.
        assert opened(changed).body == b"secret"


@STEADY
@given(
    st.binary(max_size=300) | st.lists(st.binary(max_size=60).map(base64.urlsafe_b64encode), max_size=7).map(b".".join)
)
def test_anything_at_all_is_refused_and_nothing_else(raw):
    with pytest.raises(SealError):
        opened(raw)


def test_the_opener_has_bounds():
    with pytest.raises(SealError, match="more than a seal may have"):
        opened(b"." * (MAX_SEALED + 1))
    with pytest.raises(SealError, match="too long"):
        opened(b"A" * 9000 + b"....")
    deep = base64.urlsafe_b64encode(b"[" * 3000).rstrip(b"=")
    with pytest.raises(SealError, match="can't be read"):
        opened(deep + b"....")
    with pytest.raises(SealError, match="at most"):
        sealed(b"x" * (MAX_BODY + 1))
    raw = sealed(b"x" * MAX_BODY)
    assert len(raw) <= MAX_SEALED < 16 * 1024 * 1024
    assert len(opened(raw).body) == MAX_BODY


# -- keys -----------------------------------------------------------------------------------------
def test_a_new_key_is_used_when_its_time_has_come_and_the_old_one_is_still_known():
    old, new = made("orders", 0), made("orders", NOW + 60)
    both, both_public = ring([*old, *new], "k", private=True), ring([*old, *new], "k")
    for now, kid in ((NOW, "orders-enc-0"), (NOW + 60, f"orders-enc-{NOW + 60:g}")):
        raw = seal.seal(b"x", "t", LETTER, MINE["web"], both_public, now)
        assert jose.decoded(raw.partition(b".")[0])["kid"] == kid
        assert open_sealed(raw, LETTER, both, THEIRS["web"], now).body == b"x"
    only_new = ring(new, "k", private=True)
    assert only_new.current("enc", NOW).since == NOW + 60  # better early than not at all
    with pytest.raises(UnknownKey):
        open_sealed(sealed(), LETTER, only_new, THEIRS["web"], NOW)
    with pytest.raises(UnknownKey):
        Ring().current("sig", NOW)


@pytest.mark.parametrize(
    "change", [{"kid": None}, {"use": "x"}, {"crv": "P-384"}, {"kty": "RSA"}, {"d": ""}, {"x": 7}, {"nbf": "soon"}]
)
def test_a_damaged_key_is_told(change):
    with pytest.raises(CardError, match="keys:0"):
        ring([{**KEYS["web"][0], **change}], "keys", private=True)
    with pytest.raises(CardError):
        ring({}, "keys")


def test_a_key_is_not_shown():
    assert KEYS["web"][0]["d"] not in repr(MINE["web"])


# -- replay -----------------------------------------------------------------------------------------
@pytest.mark.replay
@STEADY
@given(st.integers(1, 4), st.lists(st.integers(0, 30), min_size=1, max_size=60))
def test_no_repetition_of_a_sealed_message_is_ever_taken(size, coming):
    """Messages with different times come once or several times, in any order; each is accepted at most once."""
    window, taken = Window(size), []
    for number in coming:
        if ("web", str(number)) in window or window.too_old("web", float(number)):
            continue
        window.add("web", str(number), float(number))
        taken.append(number)
    assert len(taken) == len(set(taken))
    assert not window.too_old("orders", 0.0)
    in_order = sorted(set(coming))
    ordered = Window(size)
    for number in in_order:  # and none is refused that comes in order
        assert not ordered.too_old("web", float(number))
        ordered.add("web", str(number), float(number))
