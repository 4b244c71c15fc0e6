"""A vTPM's keys count only if they are covered by a genuine TEE report that the paravisor requested."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import string
import struct
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attestation import tee_forge
from support.attestation.boot_logs import THEN, recorded
from support.attestation.tee_forge import NOW, Amd, Intel, hcl_report, rsa_key

from netspace.attestation import refusals
from netspace.attestation.tee import hcl, tdx, x509
from netspace.attestation.tee.x509 import Trust
from netspace.attestation.verifier import offline as quotes
from netspace.attestation.verifier import tee_offline


@functools.cache
def document() -> bytes:
    """Return the paravisor's document with the two keys of a vTPM."""
    return tee_forge.vtpm(rsa_key("ak"), rsa_key("ek"))


def bound() -> bytes:
    """Return the report data that binds the report to the document."""
    return hashlib.sha256(document()).digest().ljust(64, b"\0")


def azure(vcek: bytes = b"") -> Trust:
    """Return AMD's certificates from a recorded host of Azure, with *vcek* in place of its own."""
    found = x509.from_pem(recorded("trustee/az-snp-vtpm/vcek.pem"), 3)
    roots = tuple(one for one in found if x509.is_root(x509.load(one)))
    assert len(roots) == 1
    return Trust(roots, (*(one for one in found if one not in roots), *([vcek] if vcek else [])))


def pem(key: rsa.RSAPublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def quoted(whole: dict[str, Any], key: rsa.RSAPublicKey) -> str:
    """Check the quote in recorded evidence with *key*; return the reason code."""
    message, signature = (bytes.fromhex(whole["tpm_quote"][name]) for name in ("message", "signature"))
    signed = struct.pack(">HHH", 0x0014, 0x000B, len(signature)) + signature
    return quotes.verify_quote(message, signed, pem(key)).code


def test_a_recorded_snp_report_vouches_for_the_vtpm_that_quoted() -> None:
    whole = json.loads(recorded("trustee/az-snp-vtpm/evidence-v2.json"))
    raw, vcek = (base64.urlsafe_b64decode(whole[name] + "==") for name in ("hcl_report", "vcek"))
    found, claims = hcl.genuine(raw, b"", azure(vcek), THEN)
    assert found.kind == "snp" and not found.debug
    assert quoted(whole, claims.key(hcl.ATTESTATION_KEY)) == "ok"
    other, different = hcl.genuine(recorded("trustee/az-snp-vtpm/hcl-report.bin"), b"", azure(), THEN)
    assert other.kind == "snp" and different.claims["vm-configuration"]["secure-boot"]
    assert quoted(whole, different.key(hcl.ATTESTATION_KEY)) == "signature"


def test_a_recorded_tdx_quote_vouches_for_the_vtpm_that_quoted() -> None:
    raw, quote = recorded("trustee/az-tdx-vtpm/hcl-report.bin"), recorded("trustee/az-tdx-vtpm/td-quote.bin")
    trust = Trust((tdx.parse(quote).chain[-1],))
    found, claims = hcl.genuine(raw, quote, trust, THEN)
    assert found.kind == "tdx" and claims.key(hcl.ENDORSEMENT_KEY).key_size == 2048
    with pytest.raises(refusals.TeeBinding):
        hcl.genuine(raw, recorded("trustee/tdx_quote_5.dat"), trust, THEN)
    whole = json.loads(recorded("trustee/az-tdx-vtpm/evidence-v1.json"))
    stored = base64.urlsafe_b64decode(whole["hcl_report"] + "==")
    assert quoted(whole, hcl.parse(stored).key(hcl.ATTESTATION_KEY)) == "ok"


def test_each_changed_byte_of_a_recorded_document_is_noticed() -> None:
    raw, trust = recorded("trustee/az-snp-vtpm/hcl-report.bin"), azure()
    for at in range(1236, 1236 + 1110, 11):
        with pytest.raises(refusals.Refused):
            hcl.genuine(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :], b"", trust, THEN)


def test_the_keys_of_a_vtpm_are_bound_to_an_snp_report() -> None:
    maker = Amd()
    raw = hcl_report(maker.report(bound()), document())
    found, claims = hcl.genuine(raw, tee_forge.table((tee_forge.VCEK_GUID, maker.leaf())), maker.trust(), NOW)
    assert found.report_data == bound()
    assert pem(claims.key(hcl.ATTESTATION_KEY)) == pem(rsa_key("ak").public_key())
    assert pem(claims.key(hcl.ENDORSEMENT_KEY)) == pem(rsa_key("ek").public_key())


@pytest.mark.parametrize(("algorithm", "name"), [(1, "sha256"), (2, "sha384"), (3, "sha512")])
def test_the_document_is_bound_by_each_hash(algorithm: int, name: str) -> None:
    maker = Intel()
    quote = maker.quote(hashlib.new(name, document()).digest().ljust(64, b"\0"))
    raw = hcl_report(b"", document(), kind=4, algorithm=algorithm, version=2)
    assert hcl.genuine(raw, quote, maker.trust(), NOW)[0].kind == "tdx"
    with pytest.raises(refusals.TeeBinding):
        hcl.genuine(hcl_report(b"", document() + b" ", kind=4, algorithm=algorithm), quote, maker.trust(), NOW)


def test_a_report_that_the_guest_asked_for_binds_nothing() -> None:
    """A report that the guest itself requested is refused: it may cover a document with keys that the guest holds."""
    maker = Amd()
    raw = hcl_report(maker.report(bound(), vmpl=2), document())
    with pytest.raises(refusals.TeeBinding, match="paravisor"):
        hcl.genuine(raw, b"", maker.trust(maker.leaf()), NOW)


MALFORMED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda good: b"",
    "another magic": lambda good: b"HCLB" + hcl_report(bytes(1184), good)[4:],
    "another version": lambda good: hcl_report(bytes(1184), good, version=3),
    "another type": lambda good: hcl_report(bytes(1184), good, kind=3),
    "another hash": lambda good: hcl_report(bytes(1184), good, algorithm=0),
    "no JSON": lambda good: hcl_report(bytes(1184), b"{"),
    "no object": lambda good: hcl_report(bytes(1184), b"[]"),
    "nested": lambda good: hcl_report(bytes(1184), b"[" * 10000),
    "more after it": lambda good: hcl_report(bytes(1184), good) + b"x",
    "too long": lambda good: hcl_report(bytes(1184), good, pad=20000),
}


@pytest.mark.parametrize("make", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_report_is_malformed(make: Callable[[bytes], bytes]) -> None:
    with pytest.raises(refusals.TeeMalformed):
        hcl.parse(make(document()))


@pytest.mark.parametrize(
    "told",
    [
        b"{}",
        b'{"keys": 1}',
        b'{"keys": [1]}',
        b'{"keys": [{"kid": "HCLAkPub", "kty": "EC"}]}',
        b'{"keys": [{"kid": "HCLAkPub", "kty": "RSA"}]}',
        b'{"keys": [{"kid": "HCLAkPub", "kty": "RSA", "n": "AQAB", "e": "AQAB"}]}',
        b'{"keys": [{"kid": "HCLAkPub", "kty": "RSA", "n": "!!", "e": "AQAB"}]}',
    ],
)
def test_a_document_without_the_key_is_malformed(told: bytes) -> None:
    with pytest.raises(refusals.TeeMalformed):
        hcl.parse(hcl_report(bytes(1184), told)).key(hcl.ATTESTATION_KEY)


def test_a_document_with_the_key_twice_is_malformed() -> None:
    twice = json.dumps({"keys": json.loads(document())["keys"][:1] * 2}).encode()
    with pytest.raises(refusals.TeeMalformed):
        hcl.parse(hcl_report(bytes(1184), twice)).key(hcl.ATTESTATION_KEY)


def test_a_number_of_a_key_has_one_spelling() -> None:
    """A second spelling of a key's number is refused: in 256 encoded bytes, the last character has four unused bits."""
    whole = json.loads(document())
    (key,) = (one for one in whole["keys"] if one["kid"] == hcl.ATTESTATION_KEY)
    modulus = key["n"]
    letters = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    for other in (modulus[:-1] + letters[letters.index(modulus[-1]) + 1], modulus + "==", modulus[:5] + "\n"):
        key["n"] = other
        with pytest.raises(refusals.TeeMalformed, match=r"HCL report: a key: not (canonical )?base64url"):
            hcl.parse(hcl_report(bytes(1184), json.dumps(whole).encode())).key(hcl.ATTESTATION_KEY)


def test_a_report_in_a_file_shows_the_keys() -> None:
    maker = Amd()
    raw = hcl_report(maker.report(bound()), document())
    found = tee_offline.verify(tee_offline.Given(raw), maker.trust(maker.leaf()), NOW)
    assert found["valid"] and found["report"]["vtpm"]["attestation_key"].encode() == pem(rsa_key("ak").public_key())
    assert found["report"]["vtpm"]["configuration"] == {"secure-boot": True}


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutations_give_claims_or_a_refusal(data: st.DataObject) -> None:
    raw = bytearray(hcl_report(bytes(1184), document()))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(1, 3))] = data.draw(st.binary(max_size=4))
    try:
        hcl.parse(bytes(raw)).key(hcl.ATTESTATION_KEY)
    except refusals.Refused as err:
        assert err.code == "tee-malformed"
