"""Seals between hosts: a message opens only if its sender's host endorsed its signing key."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey
from test_client_seal import KEYS, NOW, STEADY, forged

from netspace_client import CardError, SealError, card, seal
from netspace_client.endorsement import KIND, MAX, Endorser
from netspace_client.errors import UnknownKey
from netspace_client.keys import Ring, ring
from netspace_client.seal import LIFE, Envelope, open_sealed

H1, H2 = "spiffe://h1.example.org/host/h1", "spiffe://h2.example.org/host/h2"
WEB, ORDERS = f"{H1}/env/web", f"{H2}/env/orders"
LETTER = Envelope("web@h1.orders@h2", WEB, ORDERS, "message", "id-1")
DAY = 86400
SIGNERS = {host: ECKey.generate_key("P-256") for host in (H1, H2, "mallory")}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["jwk", "kty", "x"]) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)


def public(key: ECKey, kid: str, **more: Any) -> dict[str, Any]:
    return {**key.as_dict(private=False), "kid": kid, "use": "sig", **more}


def endorser(host: str = H1, **more: Any) -> Endorser:
    return Endorser(host, ring([public(SIGNERS[host], host, **{"exp": NOW + 700 * DAY, **more})], "keys"))


def endorsement(name: str = "web", use: str = "sig", by: str = H1, header: dict | None = None, **said: Any) -> str:
    """Return an endorsement by *host* of a key of *name*; *said* replaces some of its usual claims."""
    jwk = next(one for one in KEYS[name] if one["use"] == use)
    claims = {
        "iss": H1,
        "sub": f"{H1}/env/{name}",
        "nbf": NOW - DAY,
        "exp": NOW + 13 * DAY,
        "cnf": {"jwk": {member: jwk[member] for member in ("kty", "crv", "x", "y", "kid", "use")}},
        **said,
    }
    claims = {member: value for member, value in claims.items() if value is not ...}
    about = {"alg": "ES256", "kid": by if by in (H1, H2) else H1, "typ": KIND, **(header or {})}
    about = {member: value for member, value in about.items() if value is not ...}
    return signed(about, claims, SIGNERS[by])


def signed(header: dict[str, Any], claims: dict[str, Any], key: ECKey) -> str:
    """Return a token assembled here, because ``joserfc`` refuses to sign malformed tokens."""
    text = ".".join(base64.urlsafe_b64encode(json.dumps(one).encode()).decode().rstrip("=") for one in (header, claims))
    der = key.private_key.sign(text.encode(), ec.ECDSA(hashes.SHA256()))
    both = b"".join(number.to_bytes(32, "big") for number in utils.decode_dss_signature(der))
    return f"{text}.{base64.urlsafe_b64encode(both).decode().rstrip('=')}"


def held(name: str, token: str | None) -> Ring:
    """Return an environment's own keys; the signing key has the endorsement *token* unless it is None."""
    keys = [{**one, **({"endorsement": token} if one["use"] == "sig" and token else {})} for one in KEYS[name]]
    return ring(keys, "keys", private=True)


def known(name: str, **more: Any) -> Ring:
    """Return the keys of an environment in the card of another host: only its encryption keys."""
    return ring([{**one, **more} for one in KEYS[name] if one["use"] == "enc"], "keys")


def sealed(token: str | None = None, by: str = "web", envelope: Envelope = LETTER, now: float = NOW) -> bytes:
    token = token or endorsement(by)
    return seal.seal(b"secret", "text/plain", envelope, held(by, token), known("orders"), now, afar=True)


def opened(raw: bytes, envelope: Envelope = LETTER, by: Endorser | None = None, now: float = NOW):
    return open_sealed(raw, envelope, held("orders", None), known("web"), now, by or endorser())


def test_what_a_host_endorsed_for_its_environment_is_opened():
    assert opened(sealed()) == seal.Opened(b"secret", "text/plain", NOW)


@pytest.mark.parametrize(
    ("forgery", "why"),
    [
        ({"name": "mallory"}, "isn't valid for .*/env/web"),  # another environment of the same host
        ({"sub": f"{H2}/env/web"}, "isn't valid for"),  # one of the same name on another
        ({"by": H2, "iss": H2, "sub": f"{H2}/env/web"}, "isn't known as"),  # which its own host endorses
        ({"by": H2}, "isn't known as"),  # another host endorses
        ({"by": "mallory"}, "doesn't hold"),  # somebody, by the name of the endorser's key
        ({"iss": H2}, "isn't valid for"),
        ({"use": "enc"}, "for another use"),
        ({"exp": NOW - 1}, "has ended"),
        ({"exp": NOW - DAY, "nbf": NOW}, "has ended"),
        ({"exp": NOW + DAY}, "longer than the endorsement"),  # for the seal is said to hold for seven days
        ({"nbf": NOW + 61}, "before its key was endorsed"),
        ({"exp": "soon"}, "no time"),
        ({"exp": True}, "no time"),
        ({"exp": float("nan")}, "no time"),
        ({"nbf": float("nan")}, "no time"),
        ({"exp": 10**400}, "no time"),
        ({"nbf": -(10**400)}, "no time"),
        ({"nbf": ...}, "isn't valid for"),
        ({"extra": 1}, "isn't valid for"),
        ({"cnf": {}}, "contains no key"),
        ({"cnf": {"jwk": public(SIGNERS[H1], H1), "jku": "https://x"}}, "contains no key"),
        ({"cnf": {"jwk": {**public(SIGNERS["mallory"], "web-sig-0"), "d": "x"}}}, "contains no key"),
        ({"cnf": {"jwk": {**public(SIGNERS["mallory"], "web-sig-0"), "crv": "P-384"}}}, "for another use"),
        ({"cnf": {"jwk": {**public(SIGNERS["mallory"], "web-sig-0"), "x": 7}}}, "contains no key"),
        ({"cnf": {"jwk": public(SIGNERS["mallory"], "web-sig-0")}}, "signature doesn't hold"),  # but not what signed
        ({"cnf": {"jwk": public(SIGNERS["mallory"], "another")}}, "of another key"),
        ({"header": {"typ": "JWT"}}, "of another kind"),
        ({"header": {"typ": "netspace-seal"}}, "of another kind"),
        ({"header": {"typ": ...}}, "of another kind"),
        ({"header": {"crit": ["x"]}}, "of another kind"),
        ({"header": {"kid": 7}}, "is missing or no text"),
    ],
)
def test_nothing_else_is_an_endorsement(forgery, why):
    """Messages with forged endorsements of many kinds are refused, each with its reason."""
    name = forgery.get("name", "web")
    token = endorsement(**forgery)
    signer = ECKey.import_key({**KEYS[name][0]})
    with pytest.raises(SealError, match=why):
        opened(raw(token, signer, kid=f"{name}-sig-0"))


def test_a_key_to_encrypt_signs_nothing_though_it_is_endorsed_as_what_it_is():
    """A message signed with a stolen encryption key is refused, though its host endorsed the key for encryption."""
    signer = ECKey.import_key({member: KEYS["web"][1][member] for member in ("kty", "crv", "x", "y", "d")})
    with pytest.raises(SealError, match="for another use"):
        opened(raw(endorsement(use="enc"), signer, kid="web-enc-0"))


def raw(token: Any, signer: ECKey, kid: str = "web-sig-0", **signed: Any) -> bytes:
    """Return a sealed message that *signer* signed, with an endorsement."""
    about = {"kid": kid, "lnk": LETTER.link, "frm": WEB, "to": ORDERS, "exp": NOW + LIFE, "edt": token, **signed}
    return forged(about, key_to_sign=signer)


def test_a_forgery_differs_from_a_seal_by_its_endorsement_alone():
    signer = ECKey.import_key(KEYS["web"][0])
    assert opened(raw(endorsement(), signer)).body == b"x"
    for odd in (..., None, 7, "", "a.b", "a.b.c", "é.b.c", "A" * (MAX + 1), "A" * 3000 + ".b.c", ["x"]):
        with pytest.raises(SealError):
            opened(raw(odd, signer))
    head, body, signature = endorsement().split(".")
    for algorithm in ("none", "HS256", "ES384"):
        other = signed({"alg": algorithm, "kid": H1, "typ": KIND}, {}, SIGNERS[H1]).split(".")[0]
        for bytes_of in (signature, ""):
            with pytest.raises(SealError, match="of another kind"):
                opened(raw(f"{other}.{body}.{bytes_of}", signer))
    with pytest.raises(SealError, match="doesn't hold"):
        opened(raw(f"{head}.{body}.", signer))


def test_a_seal_of_one_host_is_none_between_hosts_nor_the_other_way_round():
    """A link between hosts refuses a local link's seal, and a local link refuses a seal between hosts."""
    local = Envelope("web.orders", "web", "orders", "message", "id-1")
    within = seal.seal(b"x", "t", local, held("web", None), known("orders"), NOW)
    with pytest.raises(SealError, match="signed in another way"):
        opened(within, local)
    keys = ring(KEYS["web"], "keys")
    assert open_sealed(within, local, held("orders", None), keys, NOW).body == b"x"
    with pytest.raises(SealError, match="signed in another way"):
        open_sealed(sealed(), LETTER, held("orders", None), keys, NOW)
    # Keys to sign that a card tells of another host's environments count for nothing.
    unendorsed = forged({"lnk": LETTER.link, "frm": WEB, "to": ORDERS})
    with pytest.raises(SealError, match="signed in another way"):
        open_sealed(unendorsed, LETTER, held("orders", None), keys, NOW, endorser())


@pytest.mark.parametrize("name", ["link", "sender", "receiver", "use", "id", "correlation"])
def test_nothing_outside_can_be_changed(name):
    with pytest.raises(SealError):
        opened(sealed(), dataclasses.replace(LETTER, **{name: "another"}))


def test_an_endorser_that_is_not_known_or_has_run_out_is_told_with_the_remedy():
    for by in (Endorser(H1, Ring()), endorser(exp=NOW)):
        with pytest.raises(UnknownKey, match="exchange_seals"):
            opened(sealed(), by=by)


def test_who_cannot_seal_is_told_why():
    def attempt(mine: Ring, theirs: Ring) -> bytes:
        return seal.seal(b"x", "t", LETTER, mine, theirs, NOW, afar=True)

    for theirs in (Ring(), known("orders", exp=NOW)):
        with pytest.raises(UnknownKey, match=f"no key of {ORDERS} is valid now; .*exchange_seals"):
            attempt(held("web", endorsement()), theirs)
    for token in (None, "x", "a.b.c", endorsement(exp=NOW), endorsement(exp="x")):
        with pytest.raises(SealError, match="isn't endorsed for other hosts"):
            attempt(held("web", token), known("orders"))


def test_a_seal_holds_no_longer_than_its_endorsement():
    token = endorsement(exp=NOW + DAY)
    raw = sealed(token)
    assert opened(raw, now=NOW + DAY - 1).body == b"secret"
    with pytest.raises(SealError, match="has ended"):
        opened(raw, now=NOW + DAY)
    assert opened(sealed(), now=NOW + LIFE - 1).body == b"secret"
    with pytest.raises(SealError, match="not valid now"):
        opened(sealed(), now=NOW + LIFE + 1)


@STEADY
@given(st.data())
def test_no_change_of_an_endorsement_gets_through(data):
    token = endorsement()
    at = data.draw(st.integers(0, len(token) - 1))
    changed = token[:at] + data.draw(st.characters(max_codepoint=127)) + token[at + 1 :]
    signer = ECKey.import_key(KEYS["web"][0])
    with contextlib.suppress(SealError):
        opened(raw(changed, signer))
        # Base64's last character may be spelled in several ways, which mean the same.
        assert changed == token or at in (token.index(".") - 1, token.rindex(".") - 1, len(token) - 1)


@STEADY
@given(ANYTHING, st.sampled_from(["iss", "sub", "nbf", "exp", "cnf"]))
def test_whatever_an_endorser_says_is_taken_or_refused_and_nothing_else(value, name):
    signer = ECKey.import_key(KEYS["web"][0])
    with contextlib.suppress(SealError):
        opened(raw(endorsement(**{name: value}), signer))
        assert name in ("nbf", "exp")


# -- the card ---------------------------------------------------------------------------------------
def test_a_card_says_who_endorses_and_what_both_ends_are_called():
    entry = {
        "link": LETTER.link,
        "own": WEB,
        "peer": ORDERS,
        "keys": [{member: KEYS["orders"][1][member] for member in ("kty", "crv", "x", "y", "kid", "use", "nbf")}],
        "endorser": {"id": H2, "keys": [public(SIGNERS[H2], H2, exp=NOW)]},
    }
    about = {"host": "127.0.0.1", "port": 5671, "vhost": "v"}

    def parsed(said: dict[str, Any]) -> seal.Sealed:
        peer = {"to": "orders@h2", "pattern": "send", "exchange": "x", "seal": said}
        found = card.parse({"version": 2, "name": "web", "peers": [peer], "broker": about}).peers["orders@h2"].seal
        assert found is not None
        return found

    found = parsed(entry)
    sent = found.envelope("web", "orders@h2", "message", "1", "2", ours=True)
    assert sent == Envelope(LETTER.link, WEB, ORDERS, "message", "1", "2")
    back = found.envelope("web", "orders@h2", "answer", "3", "2", ours=False)
    assert back == Envelope(LETTER.link, ORDERS, WEB, "answer", "3", "2")
    assert found.endorser is not None and found.endorser.id == H2
    assert found.endorser.keys.find("sig", H2).until == NOW
    for change in ({"own": None}, {"peer": 7}, {"endorser": {"keys": []}}, {"endorser": {"id": H2, "keys": [{}]}}):
        with pytest.raises(CardError, match="peers:0:seal"):
            parsed({**entry, **change})
    for odd in ({"exp": "x"}, {"endorsement": 7}):
        with pytest.raises(CardError):
            ring([{**KEYS["web"][0], **odd}], "keys", private=True)
