"""Sessions of seals: messages that share a key agreement are opened independently, and only by their receiver."""

from __future__ import annotations

import base64
import contextlib
import copy
import gc
import itertools
import json
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap, aes_key_wrap
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwe, jws
from test_client_seal import KEYS, LETTER, MINE, NOW, STEADY, THEIRS, key, made

from netspace_client import SealError, agreement, codec, jose, seal
from netspace_client.agreement import EACH, LONGEST, MESSAGES, RECEIVERS, SECONDS, SENDERS, Agreed, Sessions
from netspace_client.errors import UnknownKey
from netspace_client.host import Host
from netspace_client.keys import ring
from netspace_client.seal import Envelope, open_sealed
from netspace_client.sealing import Sealing
from netspace_client.window import Window
from netspace_client.wire import Delivery

#: A seal of commit b4b83a1, before there were sessions, by the keys of ``numbered``.
FORMER = (
    b"eyJhbGciOiJFQ0RILUVTK0EyNTZLVyIsImVuYyI6IkEyNTZHQ00iLCJraWQiOiJmb3JtZXItZW5jIiwidHlwIjoibmV0c3BhY2Utc2VhbCIs"
    b"ImN0eSI6IkpXUyIsImVwayI6eyJjcnYiOiJQLTI1NiIsIngiOiJVTXlPb1lxTHVtZDJVVEV1OHBNU2ZGaWppNjZ5TDhCMHMzTzF0eFlPX2JV"
    b"IiwieSI6Ijh5U3p6X3lVT3hpdUYyaVR0S3hFZ0t4aDV5UDduVkFfQk5PbzhYZHFMTkkiLCJrdHkiOiJFQyJ9fQ.tNbL_-NiycG7G31P0vd83"
    b"dk3BbfusLyDfK1fIEjMlwBq_0yLRgL9kA.wmGjl4MwAu_to5Hq.XmVbeAzMkcBl673lXY_g6q_hcNh_uOkUsvjOzjHhzXuR5cyNfwwQMcJ5t"
    b"9HrDNmgm8tAQQlZ9NRxJyljcCqbFUI_GpTXIP2v8GcuIWA3rd2IcU_qaN5mywySS8oKrIJx4Il4m1vKid00Ve-B5z4ZgVlC2t328MJmjeZol"
    b"jvQ53pW8Z0H4iehWjUqzRxL2RCjsLwdHeLjs7cerenGDu70j3XrffGSdWCsBJQcdlyGOrc5HMKTjFwVU8smpluhxXEiXqKhuN4RX3m-_Pth7"
    b"FYKTSdUDdxASLOnbBoQfpc0jmu8tZEAunJYVYoEymglNfdjDq2HHLalVz-fvFmImQNwWDLHKFiGXg1B1a95a4XzPsofmGachQiuMLFFYJAyh"
    b"-zU7_pBLrH9ihfare0OD3mIlMXlK8AmZhXSDIXnw5hrhU1LWx6GgjAuc4rczB451hwhUuf5L4jMq_SmTeYjKRyBkSopJeAY8w.ZxsfQFRxnf"
    b"hFFu8b-aSgHA"
)


def numbered(number: int, use: str) -> dict[str, Any]:
    """Return the private key whose secret is *number*."""
    public = ec.derive_private_key(number, ec.SECP256R1()).public_key().public_numbers()
    parts = {"x": public.x, "y": public.y, "d": number}
    texts = {name: base64.urlsafe_b64encode(one.to_bytes(32, "big")).decode()[:43] for name, one in parts.items()}
    return {"kty": "EC", "crv": "P-256", **texts, "kid": f"former-{use}", "use": use}


def letter(number: int, by: str = "web") -> Envelope:
    return Envelope(f"{by}.orders", by, "orders", "message", f"id-{number}")


def sealed(sessions: Sessions, number: int, now: float = NOW, by: str = "web", to: str = "orders") -> bytes:
    body = f"secret {number}".encode()
    return seal.seal(body, "text/plain", letter(number, by), MINE[by], THEIRS[to], now, sessions=sessions)


def opened(raw: bytes, number: int, agreed: Agreed | None = None, by: str = "web", now: float = NOW) -> bytes:
    return open_sealed(raw, letter(number, by), MINE["orders"], THEIRS[by], now, agreed=agreed).body


def header(raw: bytes) -> dict[str, Any]:
    return jose.decoded(raw.partition(b".")[0])


def with_header(raw: bytes, **members: Any) -> bytes:
    """Return a seal with other members in its outer header, which the sender's signature doesn't cover."""
    told = {name: value for name, value in {**header(raw), **members}.items() if value is not ...}
    return base64.urlsafe_b64encode(json.dumps(told).encode()).rstrip(b"=") + b"." + raw.partition(b".")[2]


# -- the form ---------------------------------------------------------------------------------------
def test_former_seals_in_a_mailbox_are_still_opened():
    keys = ring([numbered(1001, "sig"), numbered(2002, "enc")], "keys", private=True)
    found = open_sealed(FORMER, LETTER, keys, keys, NOW, agreed=Agreed())
    assert found == seal.Opened(b"before", "text/plain", NOW)


def test_a_library_opens_each_message_of_a_session():
    """The library joserfc opens each message of a session by itself, like any JWE."""
    ways = jwe.JWERegistry(algorithms=["ECDH-ES+A256KW", "A256GCM"], strict_check_header=False)
    signed = jws.JWSRegistry(algorithms=["ES256"], strict_check_header=False)
    sessions = Sessions()
    for number in range(3):
        raw = sealed(sessions, number)
        found = jwe.decrypt_compact(raw, key(MINE["orders"], "enc"), registry=ways)
        assert found.plaintext == agreement.decrypt(raw, MINE["orders"], Agreed(), "web").text
        inner = jws.deserialize_compact(found.plaintext, key(MINE["web"], "sig"), registry=signed)
        assert inner.payload == f"secret {number}".encode()
        assert found.protected.keys() == {"alg", "enc", "kid", "typ", "cty", "epk"}
        assert found.protected["epk"].keys() == {"kty", "crv", "x", "y"}


@STEADY
@given(st.permutations(range(6)), st.integers(0, 6))
def test_a_session_in_any_order_is_opened(order, forgets):
    """Messages of a session are opened in any order, also if the receiver loses its cache of agreed keys in between."""
    sessions, agreed = Sessions(), Agreed()
    raws = [sealed(sessions, number) for number in range(6)]
    for at, number in enumerate(order):
        if at == forgets:
            agreed = Agreed()
        assert opened(raws[number], number, agreed) == f"secret {number}".encode()


def test_a_signature_in_another_form_is_refused():
    work, mine = jose.loaded(), MINE["web"].find("sig", "web-sig-0").jwk
    raw = work.sign({"alg": "ES256"}, b"body", mine)
    assert work.verify(raw, mine) == b"body"
    said, _, signature = raw.rpartition(b".")
    halves = jose.segment(signature)
    der = utils.encode_dss_signature(*(int.from_bytes(half, "big") for half in (halves[:32], halves[32:])))
    longer = halves[:32] + b"\0" + halves[32:]  # the same numbers
    for odd in (
        b"",
        der,
        longer,
        halves[:63],
        halves + b"\0",
        bytes(64),
        halves[:32] + bytes(32),
        b"\xff" * 64,
        halves[::-1],
    ):
        with pytest.raises(SealError, match="doesn't hold"):
            work.verify(said + b"." + jose.encoded(odd), mine)
    for odd in (b"", b"x", said, raw + b".", said + b".." + signature, b"." + raw, signature):
        with pytest.raises(SealError):
            work.verify(odd, mine)
    for parts in (b"header", said + b".more"):
        pair = utils.decode_dss_signature(work.private(mine).sign(parts, ec.ECDSA(hashes.SHA256())))
        odd = parts + b"." + jose.encoded(b"".join(half.to_bytes(32, "big") for half in pair))
        with pytest.raises(SealError, match="doesn't hold"):
            work.verify(odd, mine)
    for member, value in (("x", mine["y"]), ("x", "A" * 43), ("y", "!"), ("y", "A" * 64), ("x", "\ud800")):
        with pytest.raises(SealError, match="doesn't hold"):
            work.verify(raw, {**mine, member: value})


def test_a_coordinate_without_its_leading_zeros_is_read():
    """A public key whose coordinate lacks leading zeros is imported, since joserfc before 1.6 sends such keys."""
    number = next(
        number
        for number in range(1, 5000)
        if ec.derive_private_key(number, ec.SECP256R1()).public_key().public_numbers().x < 1 << 248
    )
    public = ec.derive_private_key(number, ec.SECP256R1()).public_key()
    numbers = public.public_numbers()
    jwk = {"x": jose.encoded(numbers.x.to_bytes(31, "big")).decode()}
    jwk["y"] = jose.encoded(numbers.y.to_bytes(32, "big")).decode()
    assert jose.loaded().imported(jwk) == public
    longer = jose.encoded(numbers.x.to_bytes(33, "big")).decode()
    with pytest.raises(ValueError, match="33 bytes"):
        jose.loaded().imported({**jwk, "x": longer})


# -- the life of a session --------------------------------------------------------------------------
def test_a_session_has_its_messages_and_its_time():
    sessions = Sessions()
    full = [header(sealed(sessions, number))["epk"]["x"] for number in range(2 * MESSAGES)]
    assert [len(list(group)) for _, group in itertools.groupby(full)] == [MESSAGES, MESSAGES]
    for later, same in ((SECONDS - 0.1, True), (SECONDS, False), (-0.1, False)):
        sessions = Sessions()
        first, second = (header(sealed(sessions, 0, now))["epk"] for now in (NOW, NOW + later))
        assert (first == second) is same


def test_a_session_is_with_one_key_of_one_receiver():
    sessions = Sessions()
    raws = {to: [sealed(sessions, number, to=to) for number in range(2)] for to in ("orders", "mallory")}
    epks = [header(raw)["epk"]["x"] for each in raws.values() for raw in each]
    assert epks[0] == epks[1] != epks[2] == epks[3]
    old, new = made("orders", 0), made("orders", NOW + 60)
    for now, kid in ((NOW, "orders-enc-0"), (NOW + 1, "orders-enc-0"), (NOW + 60, f"orders-enc-{NOW + 60:g}")):
        raw = seal.seal(b"x", "t", LETTER, MINE["web"], ring([*old, *new], "k"), now, sessions=sessions)
        assert header(raw)["kid"] == kid
        both = ring([*old, *new], "k", private=True)
        assert open_sealed(raw, LETTER, both, THEIRS["web"], now, agreed=Agreed()).body == b"x"
    # Two keys of one name, as two hosts might give them.
    named = [{**KEYS[name][1], "kid": "same"} for name in ("orders", "mallory")]
    for key_of in named:
        raw = seal.seal(b"x", "t", LETTER, MINE["web"], ring([key_of], "k"), NOW, sessions=sessions)
        own = ring([key_of], "k", private=True)
        assert open_sealed(raw, LETTER, own, THEIRS["web"], NOW, agreed=Agreed()).body == b"x"


def test_sessions_with_many_receivers_are_bounded():
    sessions = Sessions()
    for number in range(RECEIVERS + 3):
        reader = THEIRS["orders"].current("enc", NOW)
        sessions.encrypt(b"x", type(reader)(f"key-{number}", "enc", 0, reader.jwk), NOW)
    assert len(sessions._of) == RECEIVERS


# -- forward secrecy --------------------------------------------------------------------------------
def reachable(root: Any) -> list[Any]:
    """Return all objects in memory that can be reached from *root*."""
    found, left = {}, [root]
    while left:
        one = left.pop()
        if id(one) not in found and not isinstance(one, type):
            found[id(one)] = one
            left += gc.get_referents(one)
    return list(found.values())


def test_a_sender_keeps_nothing_that_opens_earlier_messages():
    sessions = Sessions()
    raws = [sealed(sessions, number) for number in range(3)]
    agreed = agreement.decrypt(raws[0], MINE["orders"], Agreed(), "web").key
    used = [aes_key_unwrap(agreed, base64.urlsafe_b64decode(raw.split(b".")[1] + b"==")) for raw in raws]
    assert len(set(used)) == 3
    there = reachable(sessions)
    texts = {bytes(one) for one in there if isinstance(one, bytes | bytearray)}
    assert len(texts) > MESSAGES  # the content keys of later messages are there
    assert not texts & {agreed, *used}
    assert not [one for one in there if isinstance(one, ec.EllipticCurvePrivateKey)]


def test_a_program_copied_while_it_runs_repeats_no_vector():
    """After fork(2) both processes have the same content keys, and must use different vectors, as AES-GCM demands."""
    sessions = Sessions()
    sealed(sessions, 0)
    other = copy.deepcopy(sessions)
    for number in range(1, 4):
        raws = [sealed(one, number) for one in (sessions, other)]
        first, second = (raw.split(b".") for raw in raws)
        assert first[:2] == second[:2]
        assert first[2] != second[2]
        assert [opened(raw, number) for raw in raws] == 2 * [f"secret {number}".encode()]


# -- forgeries --------------------------------------------------------------------------------------
@pytest.mark.parametrize("warm", [False, True])
def test_no_splice_of_a_session_gets_through(warm):
    """Messages of two sessions and two senders are combined from all their parts; only the originals are opened."""
    sessions, agreed = Sessions(), Agreed()
    senders = ("web", "web", "web", "mallory")
    others = (sealed(sessions, 0), sealed(sessions, 1), sealed(Sessions(), 2), sealed(Sessions(), 3, by="mallory"))
    whole = {(raw, number) for number, raw in enumerate(others)}
    for raw, number in whole if warm else ():
        opened(raw, number, agreed, senders[number])
    accepted = set()
    for chosen in itertools.product(*map(dict.fromkeys, zip(*(raw.split(b".") for raw in others), strict=True))):
        raw = b".".join(chosen)
        for number, by in enumerate(senders):
            with contextlib.suppress(SealError):
                opened(raw, number, agreed, by)
                accepted.add((raw, number))
    assert accepted == whole


def test_a_session_with_another_receiver_is_not_opened():
    sessions, agreed = Sessions(), Agreed()
    opened(sealed(sessions, 0), 0, agreed)
    raw = sealed(sessions, 1, to="mallory")
    with pytest.raises(UnknownKey):
        opened(raw, 1, agreed)
    with pytest.raises(SealError, match="decrypted"):
        opened(with_header(raw, kid="orders-enc-0"), 1, agreed)


@STEADY
@given(st.data())
def test_no_change_of_a_message_in_a_session_gets_through(data):
    sessions, agreed = Sessions(), Agreed()
    opened(sealed(sessions, 0), 0, agreed)
    raw = bytearray(sealed(sessions, 1))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = (raw[at] + data.draw(st.integers(1, 255))) % 256
    with pytest.raises(SealError):
        opened(bytes(raw), 1, agreed)


@pytest.mark.parametrize(
    "change", [{"cty": "JWT"}, {"typ": "JWE"}, {"typ": ...}, {"cty": ...}, {"kid": "web-enc-0"}, {"alg": "ECDH-ES"}]
)
def test_an_outer_header_that_was_changed_is_refused(change):
    """A message with a changed outer header is refused. The encryption covers this header; the signature doesn't."""
    raw = sealed(Sessions(), 0)
    with pytest.raises(SealError):
        opened(with_header(raw, **change), 0)


def test_a_message_of_a_session_is_not_another_one():
    """A message of a known session is refused if its link, sender, receiver, kind, id or question differs."""
    sessions, agreed = Sessions(), Agreed()
    first, second = (sealed(sessions, number) for number in range(2))
    opened(first, 0, agreed)
    names = {
        "link": "web.vault",
        "sender": "ui",
        "receiver": "vault",
        "use": "answer",
        "id": "id-0",
        "correlation": "x",
    }
    for name, other in names.items():
        envelope = Envelope(**{**vars(letter(1)), name: other})
        with pytest.raises(SealError, match="it was sealed as"):
            open_sealed(second, envelope, MINE["orders"], THEIRS["web"], NOW, agreed=agreed)


def test_who_knows_the_receivers_key_still_signs_nothing():
    """A thief of the receiver's key encrypts a message, which is refused, because he can't sign as the sender."""
    sessions, agreed = Sessions(), Agreed()
    raw = sealed(sessions, 0)
    opened(raw, 0, agreed)
    stolen = agreement.decrypt(raw, MINE["orders"], agreed, "web")
    thief = Sessions()
    thief._of.update(sessions._of)
    for text in (b"plain", stolen.text[:-4] + b"AAAA", b"a.b.c"):
        forged = thief.encrypt(text, THEIRS["orders"].current("enc", NOW), NOW)
        with pytest.raises(SealError):
            opened(forged, 0, agreed)
    with pytest.raises(UnknownKey):
        opened(sealed(sessions, 1, by="mallory"), 1, agreed)


def points() -> list[Any]:
    good = header(sealed(Sessions(), 0))["epk"]
    far = base64.urlsafe_b64encode(b"\xff" * 32).decode()[:43]
    zero = base64.urlsafe_b64encode(bytes(32)).decode()[:43]
    return [
        *(None, [], {}, "x", 7),
        *({**good, name: value} for name in good for value in (None, 7, "", "!", "A" * 65)),
        *({**good, name: value} for name in "xy" for value in (far, zero, good["x" if name == "y" else "y"])),
        *({**good, "crv": curve} for curve in ("P-384", "secp256k1", "X25519")),
        {**good, "kty": "OKP"},
        {"kty": "EC", "crv": "P-256", "x": zero, "y": zero},
    ]


@pytest.mark.parametrize("epk", points())
def test_an_ephemeral_key_that_is_none_is_refused(epk):
    """An invalid ephemeral key is refused, since a point off the curve could reveal the receiver's key."""
    with pytest.raises(SealError, match=r"ephemeral|decrypted|read"):
        opened(with_header(sealed(Sessions(), 0), epk=epk), 0)


@pytest.mark.parametrize("part", [1, 2, 4])
def test_a_part_of_another_size_is_refused(part):
    parts = sealed(Sessions(), 0).split(b".")
    for size in (0, 1, 8, 12, 15, 16, 24, 40, 48):
        changed = [*parts[:part], base64.urlsafe_b64encode(bytes(size)).rstrip(b"="), *parts[part + 1 :]]
        with pytest.raises(SealError, match="decrypted"):
            opened(b".".join(changed), 0)


def test_sizes_that_the_primitives_would_take_are_refused():
    """A forger agrees on a key with the receiver's key. A key, vector or tag of the wrong size is refused."""
    found = agreement.decrypt(sealed(Sessions(), 0), MINE["orders"], Agreed(), "web")

    def encrypted(key_size: int, vector_size: int, moved: int) -> bytes:
        content_key, vector = bytes(key_size), bytes(vector_size)
        text = AESGCM(content_key).encrypt(vector, found.text, found.header)
        pieces = (aes_key_wrap(found.key, content_key), vector, text[: -16 - moved], text[-16 - moved :])
        return b".".join((found.header, *map(jose.encoded, pieces)))

    assert opened(encrypted(32, 12, 0), 0) == b"secret 0"
    for sizes in ((16, 12, 0), (24, 12, 0), (32, 16, 0), (32, 8, 0), (32, 12, 1), (32, 12, -1)):
        with pytest.raises(SealError, match="wrong size"):
            opened(encrypted(*sizes), 0)


def test_another_spelling_of_a_part_is_refused():
    """A message with another base64url spelling of the same bytes is refused, so that a message has one valid form."""
    parts = sealed(Sessions(), 0).split(b".")
    for odd in (parts[4] + b"=", parts[4][:-1] + b"B", parts[4][:9] + b" " + parts[4][9:]):
        with pytest.raises(SealError, match="base64url"):
            opened(b".".join([*parts[:4], odd]), 0)


# -- what a receiver remembers ----------------------------------------------------------------------
def remembered(agreed: Agreed, sender: str, raw: bytes) -> bool:
    return agreed.known(sender, raw.partition(b".")[0]) is not None


def test_only_accepted_messages_make_a_receiver_remember():
    agreed = Agreed()
    raw = sealed(Sessions(), 0)
    for forged, number, by, now in (
        (sealed(Sessions(), 0, by="mallory"), 0, "web", NOW),  # signed by another
        (Sessions().encrypt(b"text", THEIRS["orders"].current("enc", NOW), NOW), 0, "web", NOW),  # by nobody
        (raw, 1, "web", NOW),  # for another id
        (raw, 0, "web", NOW + seal.LIFE + 1),  # too late
        (raw[:-4] + b"AAAA", 0, "web", NOW),
    ):
        with pytest.raises((SealError, UnknownKey)):
            opened(forged, number, agreed, by, now)
        assert not remembered(agreed, "web", forged)
    opened(raw, 0, agreed)
    assert remembered(agreed, "web", raw)


def test_a_sender_with_many_sessions_displaces_only_its_own():
    agreed, kept = Agreed(), sealed(Sessions(), 0)
    opened(kept, 0, agreed)
    many = [sealed(Sessions(), number, by="mallory") for number in range(EACH + 4)]
    for number, raw in enumerate(many):
        assert opened(raw, number, agreed, by="mallory")
    assert remembered(agreed, "web", kept)
    assert [remembered(agreed, "mallory", raw) for raw in many] == [False] * 4 + [True] * EACH
    for number, raw in enumerate(many):  # what was displaced is opened all the same
        assert opened(raw, number, agreed, by="mallory") == f"secret {number}".encode()


def test_what_is_remembered_is_bounded():
    agreed = Agreed()
    for number in range(SENDERS + 5):
        for session in range(EACH + 1):
            agreed.remember(f"sender-{number}", b"%d" % session, b"key")
    assert sum(map(len, agreed._of.values())) == SENDERS * EACH
    for size in (LONGEST, LONGEST + 1):
        agreed.remember("web", b"A" * size, b"key")
        assert (agreed.known("web", b"A" * size) is not None) is (size == LONGEST)


def test_what_is_remembered_saves_the_agreement(monkeypatch):
    """Further messages of a session are opened without another key agreement."""
    sessions, agreed = Sessions(), Agreed()
    raws = [sealed(sessions, number) for number in range(3)]
    opened(raws[0], 0, agreed)
    monkeypatch.setattr(agreement, "_agree", lambda private, public: pytest.fail("agreed again"))
    for number in (1, 2, 0):
        assert opened(raws[number], number, agreed) == f"secret {number}".encode()


def test_the_opener_has_bounds_for_many_parts():
    with pytest.raises(SealError, match="isn't sealed"):
        open_sealed(b"." * jose.MAX_SEALED, LETTER, MINE["orders"], THEIRS["web"], NOW)


# -- both ends of a link ----------------------------------------------------------------------------
def end(folder: Path, name: str, other: str, keys: dict[str, list[dict]]) -> Sealing:
    """Return one end of the link from web to orders, with the files that its host gives to it."""
    folder.mkdir(exist_ok=True)
    public = [{member: one[member] for member in one if member != "d"} for one in keys[other]]
    about = {"link": "web.orders", "keys": public}
    peer = {"to": other, "pattern": "send", "exchange": "x", "seal": about}
    sender = {"from": other, "pattern": "send", "exchange": "x", "seal": about}
    told = {
        "version": 2,
        "name": name,
        "peers": [peer] if name == "web" else [],
        "senders": [sender] if name == "orders" else [],
        "broker": {"host": "127.0.0.1", "port": 5671, "vhost": "v"},
        "seal": {"keys_file": "/run/netspace/seal.json"},
    }
    for file, content in (("seal.json", {"keys": keys[name]}), ("environment.json", told)):
        (folder / file).with_suffix(".new").write_text(json.dumps(content))
        (folder / file).with_suffix(".new").replace(folder / file)
    return Sealing(Host(folder), Window())


def test_two_ends_use_a_session_until_their_keys_change(tmp_path, monkeypatch):
    counted = []
    agree = agreement._agree
    monkeypatch.setattr(agreement, "_agree", lambda *keys: counted.append(keys) or agree(*keys))
    web, orders = (end(tmp_path / name, name, other, KEYS) for name, other in (("web", "orders"), ("orders", "web")))

    def carried(number: int) -> bytes:
        peer, sender = web._host.card.peers["orders"], orders._host.card.senders["x"]
        raw, about = web.prepared((b"%d" % number, "t"), peer.seal, "orders", "message", f"id-{number}")
        content = codec.message(1, b"", about, b"", 100)[15:-1]
        delivery = Delivery(cast(Any, None), bytes((0, 60, 0, 60, 0)) + bytes(9) + b"\1x\0", content, raw)
        found = orders.opened(delivery, sender.seal, "web", "message")
        assert found is not None
        return found.body

    assert [carried(number) for number in range(5)] == [b"%d" % number for number in range(5)]
    assert len(counted) == 2  # one at each end
    renewed = {**KEYS, "orders": [*KEYS["orders"], *made("orders", NOW - 10_000_000_000)]}
    former = orders._agreed
    end(tmp_path / "orders", "orders", "web", renewed)
    assert carried(5) == b"5"
    assert orders._agreed is not former  # what was agreed with a key that is gone is gone, too
    assert len(counted) == 3
    replaced = {name: made(name, 1.0) for name in ("web", "orders")}
    for name, other in (("web", "orders"), ("orders", "web")):
        end(tmp_path / name, name, other, replaced)
    assert carried(6) == b"6"
    assert jose.loaded()._private.cache_info().currsize <= 2  # one of each end; the former ones are gone
