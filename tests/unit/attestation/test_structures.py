"""The TPM's structures: parsed exactly, or refused with a reason."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netspace.attestation import refusals
from netspace.attestation.tpm import structures

FIXTURES = Path(__file__).parents[2] / "fixtures/eventlogs"
PARSERS = [structures.quote, structures.signature, structures.public, structures.endorsement]
fuzz = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.mark.parametrize(("boot", "last"), [("shim-grub", {12, 14}), ("uki", {14, 15})])
def test_a_quote_by_tpm2_tools(boot: str, last: set[int]) -> None:
    raw = (FIXTURES / boot / "quote.msg").read_bytes()
    quote = structures.quote(raw)
    assert quote.extra == bytes.fromhex("00112233")
    assert quote.selections == ((0x000B, frozenset({*range(12), *last})),)
    signature = structures.signature((FIXTURES / boot / "quote.sig").read_bytes())
    assert (signature.scheme, signature.hash) == (structures.ECDSA, 0x000B)
    key = serialization.load_pem_public_key((FIXTURES / boot / "ak.pub").read_bytes())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(signature.value, raw, ec.ECDSA(hashes.SHA256()))


def test_public_of_an_attestation_key(fake_tpm) -> None:
    key = structures.public(fake_tpm.ak_public)
    assert key.scheme == (structures.ECDSA, 0x000B) and key.symmetric is None
    assert key.name == b"\0\x0b" + hashlib.sha256(fake_tpm.ak_public).digest()
    assert key.key() == fake_tpm.ak.public_key()


def test_public_of_an_endorsement_key(fake_tpm, fake_rsa_tpm) -> None:
    for one in (fake_tpm, fake_rsa_tpm):
        assert structures.endorsement(one.ek_public).key() == one.ek.public_key()
    with pytest.raises(refusals.WrongEndorsementKey):
        structures.endorsement(fake_tpm.ak_public)


def test_a_point_off_its_curve(fake_tpm) -> None:
    raw = bytearray(fake_tpm.ak_public)
    raw[-1] ^= 1
    with pytest.raises(refusals.Malformed, match="not a key"):
        structures.public(bytes(raw)).key()


def test_a_reserved_attribute(fake_tpm) -> None:
    raw = bytearray(fake_tpm.ak_public)
    raw[4] |= 0x80
    with pytest.raises(refusals.Malformed, match="reserved"):
        structures.public(bytes(raw))


def test_no_byte_too_many_and_none_too_few(fake_tpm, fake_rsa_tpm) -> None:
    attest = fake_tpm.attest(b"x" * 32)
    whole = [
        (structures.quote, attest),
        (structures.signature, fake_tpm.sign(attest)),
        (structures.public, fake_tpm.ak_public),
        (structures.public, fake_rsa_tpm.ek_public),
    ]
    for parse, raw in whole:
        parse(raw)
        with pytest.raises(refusals.Malformed, match="too many"):
            parse(raw + b"\0")
        for end in range(len(raw)):
            with pytest.raises(refusals.Refused):
                parse(raw[:end])


def test_too_large() -> None:
    with pytest.raises(refusals.Malformed, match="at most"):
        structures.public(bytes(structures.MAX_STRUCTURE + 1))


@given(st.integers(0, 2**528 - 1), st.integers(0, 2**528 - 1))
def test_ecdsa_numbers_become_der(r: int, s: int) -> None:
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    raw = struct.pack(">HH", 0x0018, 0x000B)
    for number in (r, s):
        raw += struct.pack(">H", 66) + number.to_bytes(66, "big")
    assert decode_dss_signature(structures.signature(raw).value) == (r, s)


@fuzz
@given(st.binary(max_size=400))
def test_noise(raw: bytes) -> None:
    for parse in PARSERS:
        with pytest.raises(refusals.Refused):
            parse(raw)


@fuzz
@given(data=st.data())
def test_mutations(data: st.DataObject, fake_tpm) -> None:
    attest = fake_tpm.attest(b"x" * 32)
    parse, genuine = data.draw(
        st.sampled_from(
            [
                (structures.quote, attest),
                (structures.signature, fake_tpm.sign(attest)),
                (structures.public, fake_tpm.ak_public),
                (structures.endorsement, fake_tpm.ek_public),
            ]
        )
    )
    raw = bytearray(genuine)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
        if not raw:
            break
    try:
        parsed = parse(bytes(raw))
        if isinstance(parsed, structures.Public):
            parsed.key()
    except refusals.Refused as err:
        assert err.code in str(err)
