"""Makers' certificates of many kinds: with names in the wrong order for DER, unreadable, and from real makers."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from support import checkout
from test_certificates import KEY, NOW, Authority, der, usage

from netspace.attestation.endorsement import der as encoding
from netspace.attestation.endorsement import ek_certificates, makers
from netspace.attestation.endorsement.ek_certificates import Untrusted, check
from netspace.attestation.endorsement.makers import Makers
from netspace.attestation.evidence import Enrolment
from netspace.errors import NetspaceError

ROOTS = Path(os.environ.get("NETSPACE_EK_ROOTS") or checkout.ROOT.parent / "shared/data/ek/keylime")
TOGETHER = (
    (NameOID.COMMON_NAME, "Maker TPM Root CA 0100"),
    (NameOID.ORGANIZATION_NAME, "Maker Technology Corporation"),
    (NameOID.COUNTRY_NAME, "TW"),
)


def unsorted(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return *certificate* as some makers write it: with a name that is one set, whose members are unsorted."""
    from cryptography.hazmat.primitives.asymmetric import ec as curves

    def turned(data: bytes, one: encoding.Element) -> bytes:
        if not one.tag & 0x20:
            return data[one.start : one.end]
        made = [turned(data, child) for child in encoding.elements(data, one.content, one.end)]
        return data[one.start : one.content] + b"".join(reversed(made) if one.tag == encoding.SET else made)

    signed = certificate.tbs_certificate_bytes
    signed = turned(signed, encoding.element(signed, 0, len(signed)))
    signature = key.sign(signed, curves.ECDSA(hashes.SHA256()))
    whole = der(certificate)
    _, algorithm, _ = encoding.elements(whole, encoding.element(whole, 0, len(whole)).content, len(whole))
    body = signed + whole[algorithm.start : algorithm.end]
    body += bytes((0x03, len(signature) + 1, 0)) + signature
    return b"\x30\x82" + len(body).to_bytes(2, "big") + body


@pytest.fixture(scope="module")
def maker() -> Authority:
    """A maker whose name is one set of three attributes, as Nuvoton's are."""
    made = Authority("maker", usage=usage(key_cert_sign=True, crl_sign=True))
    together = x509.Name([x509.RelativeDistinguishedName(x509.NameAttribute(*one) for one in TOGETHER)])
    builder = x509.CertificateBuilder().subject_name(together).issuer_name(together)
    for extension in (x509.BasicConstraints(True, 0), usage(key_cert_sign=True, crl_sign=True)):
        builder = builder.add_extension(extension, True)
    old = made.certificate
    made.certificate = (
        builder.public_key(made.key.public_key())
        .serial_number(7)
        .not_valid_before(old.not_valid_before_utc)
        .not_valid_after(old.not_valid_after_utc)
        .sign(made.key, hashes.SHA256())
    )
    return made


@pytest.fixture(scope="module")
def root(maker: Authority) -> bytes:
    return unsorted(maker.certificate, maker.key)


@pytest.fixture(scope="module")
def leaf(maker: Authority) -> bytes:
    """Return an endorsement certificate by this maker, whose alternative name is an unsorted set, too."""
    tpm = [
        x509.NameAttribute(x509.ObjectIdentifier(f"2.23.133.2.{number}"), f"id:0000{number}") for number in (1, 2, 3)
    ]
    name = x509.Name([x509.RelativeDistinguishedName(tpm)])
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(maker.certificate.subject)
        .public_key(KEY)
        .serial_number(8)
        .not_valid_before(maker.certificate.not_valid_before_utc)
        .not_valid_after(maker.certificate.not_valid_after_utc)
        .add_extension(x509.SubjectAlternativeName([x509.DirectoryName(name)]), True)
        .add_extension(usage(key_agreement=True), True)
        .add_extension(x509.ExtendedKeyUsage([x509.ObjectIdentifier("2.23.133.8.1")]), False)
        .sign(maker.key, hashes.SHA256())
    )
    return unsorted(made, maker.key)


def test_names_in_no_order_lead_to_their_root(root: bytes, leaf: bytes) -> None:
    for raw in (root, leaf):
        with pytest.raises(ValueError, match="InvalidSetOrdering"):
            list(x509.load_der_x509_certificate(raw).extensions)
        assert ek_certificates.readable(raw) == raw
    check(leaf, [], [root], NOW.timestamp())
    assert b"TPM Root CA" in root and ek_certificates.described(root)[1] == "ECC secp256r1"


def test_the_signature_is_over_what_its_maker_wrote(root: bytes, leaf: bytes) -> None:
    """A signature is checked over a certificate's original bytes, not over the DER copy from which fields are read."""
    with pytest.raises(Untrusted, match="did not sign"):
        check(encoding.with_sorted_sets(leaf), [], [root], NOW.timestamp())
    other = ec.generate_private_key(ec.SECP256R1())
    forged = unsorted(x509.load_der_x509_certificate(encoding.with_sorted_sets(leaf)), other)
    with pytest.raises(Untrusted, match="did not sign"):
        check(forged, [], [root], NOW.timestamp())


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_bit_of_an_unsorted_certificate_may_differ(root: bytes, leaf: bytes, data: st.DataObject) -> None:
    raw = bytearray(leaf)
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(Untrusted):
        check(bytes(raw), [], [root], NOW.timestamp())


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 60))
def test_any_bytes_are_read_or_refused(leaf: bytes, noise: bytes, at: int) -> None:
    for raw in (noise, leaf[:at] + noise + leaf[at:], b"\x30\x80" * 200, b"\x30\x82\x01\x00" * 64):
        for read in (encoding.with_sorted_sets, encoding.with_sorted_issuer, encoding.signed_part):
            try:
                found = read(raw)
            except ValueError:
                continue
            assert read is encoding.signed_part or len(found) == len(raw)


def test_two_algorithms_for_one_signature_are_refused(root: bytes) -> None:
    other = root.replace(bytes.fromhex("06082a8648ce3d040302"), bytes.fromhex("06082a8648ce3d040303"), 1)
    with pytest.raises(ValueError, match="different algorithms"):
        encoding.signed_part(other)


def test_a_list_by_a_maker_with_an_unsorted_name(maker: Authority, root: bytes, leaf: bytes) -> None:
    from netspace.attestation.refusals import RevokedEndorsementCertificate

    good = x509.load_der_x509_certificate(encoding.with_sorted_sets(leaf))
    maker.title = "unused"
    name = maker.certificate.subject
    builder = x509.CertificateRevocationListBuilder().issuer_name(name).last_update(NOW)
    revoked = x509.RevokedCertificateBuilder().serial_number(good.serial_number).revocation_date(NOW).build()
    made = builder.next_update(NOW.replace(year=2027)).add_revoked_certificate(revoked).sign(maker.key, hashes.SHA256())
    raw = made.public_bytes(serialization.Encoding.DER)
    check(leaf, [], [root], NOW.timestamp())
    with pytest.raises(RevokedEndorsementCertificate):
        check(leaf, [], [root], NOW.timestamp(), [ek_certificates.revocations(raw)])


def test_one_unreadable_file_is_named_and_stops_no_other(tmp_path: Path, root: bytes, leaf: bytes) -> None:
    pem = Authority("good").certificate.public_bytes(serialization.Encoding.PEM)
    (tmp_path / "a.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n" + pem)
    (tmp_path / "b.cer").write_bytes(root)
    (tmp_path / "c.crt").write_bytes(b"https://example.org/root.crt")
    (tmp_path / "d.der").write_bytes(root[:-3])
    (tmp_path / "readme.txt").write_bytes(b"not looked at")
    found = makers.read(str(tmp_path))
    assert len(found.roots) == 2 and root in found.roots
    assert [one.partition(":")[0] for one in found.unreadable] == ["a.pem", "c.crt", "d.der"]
    check(leaf, [], found.roots, NOW.timestamp())
    shown = makers.listed(str(tmp_path))
    assert len(shown["certificates"]) == 2 and shown["unreadable"] == list(found.unreadable)  # type: ignore[arg-type]
    with pytest.raises(NetspaceError, match="nowhere"):
        makers.read(str(tmp_path / "nowhere"))


GOOD = b"-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----\n"
DAMAGED = {
    "cut off": (GOOD[:-20], "no END line"),
    "without an end": (GOOD[:30] + b"AAEC\n", "no END line"),
    "without a beginning": (GOOD[28:], "does not match a BEGIN line"),
    "a dash too few at the end": (GOOD[:-2] + b"\n", "does not match a BEGIN line"),
    "a dash too few at the beginning": (GOOD[1:], "does not match a BEGIN line"),
    "the first line damaged": (GOOD.replace(b"BEGIN CERT", b"BEGIN cert"), "does not match a BEGIN line"),
    "another kind's end": (GOOD.replace(b"END CERTIFICATE", b"END X509 CRL"), "does not match a BEGIN line"),
    "no base64": (GOOD.replace(b"AAEC", b"AA*C"), "base64"),
    "half a group": (GOOD.replace(b"AAEC", b"AAE"), "padding"),
    "nothing in it": (GOOD.replace(b"AAEC", b""), "empty"),
}


@pytest.mark.parametrize(("block", "problem"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_block_is_named_and_spoils_no_other(block: bytes, problem: str) -> None:
    for raw, good in ((GOOD + b"text\n" + block + GOOD, 2), (block + b"\n" + GOOD, 1), (block, 0)):
        contents, problems = encoding.from_pem(raw)
        assert contents == [b"\0\1\2"] * good and len(problems) == 1 and problem in problems[0]
    assert encoding.from_pem(b"text ----- only") == ([], [])


@pytest.mark.parametrize("hostile", [b"-----BEGIN A-----\n", b"-----BEGIN ", b"-----END A-----", b"-", b"A"])
def test_pem_is_read_in_time_that_grows_with_its_size(hostile: bytes) -> None:
    begun = time.process_time()
    assert encoding.from_pem(hostile * (makers.MAX_FILE // len(hostile))).contents == []
    assert time.process_time() - begun < 20, "about a second; it was hours"


def test_a_bundle_with_a_damaged_block_is_named_and_the_rest_is_trusted(tmp_path: Path) -> None:
    pem = [Authority(name).certificate.public_bytes(serialization.Encoding.PEM) for name in ("one", "two", "three")]
    (tmp_path / "bundle.pem").write_bytes(pem[0] + pem[1].replace(b"-----END", b"---END") + pem[2])
    found = makers.read(str(tmp_path))
    assert len(found.roots) == 2 and len(found.unreadable) == 1 and "bundle.pem: PEM at byte" in found.unreadable[0]
    given = Makers(given=tmp_path)
    (tmp_path / "ab.pem").write_bytes(pem[0] + pem[1][:-20])
    with pytest.raises(NetspaceError, match=r"ab\.pem: no endorsement certificate .*: PEM at byte"):
        given.completed(Enrolment("", b"", None, b""), "ab")


def test_a_revocation_list_in_damaged_pem_is_an_error(maker: Authority) -> None:
    builder = x509.CertificateRevocationListBuilder().issuer_name(maker.certificate.subject).last_update(NOW)
    made = builder.next_update(NOW.replace(year=2027)).sign(maker.key, hashes.SHA256())
    pem = made.public_bytes(serialization.Encoding.PEM)
    assert ek_certificates.revocations(pem) == made.public_bytes(serialization.Encoding.DER)
    for raw, problem in ((pem + pem[:-20], "no END line"), (pem * 2, "2 PEM blocks"), (b"-----", "0 PEM blocks")):
        with pytest.raises(NetspaceError, match=f"not a revocation list: .*{problem}"):
            ek_certificates.revocations(raw)


def test_what_can_not_be_read_is_in_the_reason(tmp_path: Path, fake_tpm, context) -> None:  # type: ignore[no-untyped-def]
    from netspace.attestation.verifier import attestation_keys

    made = attestation_keys.challenge(
        fake_tpm.enrolment(), context, roots=[], pinned=None, now=0.0, unreadable=["NTC1.pem: odd"]
    )
    bound = made.redeem(context.activation(fake_tpm.activate(made.blob, made.encrypted), made._key.name), 0.0)
    assert bound.level == 2 and "NTC1.pem: odd" in bound.reason


def test_a_roots_own_signature_is_not_looked_at() -> None:
    """A trusted root with a weak signature on itself is accepted, like older roots of Nuvoton.

    The operator has chosen to trust the root. A certificate that the root signed weakly is refused.
    """
    old = Authority("old", digest=hashes.SHA224())
    check(der(old.leaf(KEY)), [], [der(old.certificate)], NOW.timestamp())
    with pytest.raises(Untrusted, match="signed with sha224"):
        check(der(old.leaf(KEY, digest=hashes.SHA224())), [], [der(old.certificate)], NOW.timestamp())
    between = Authority("between", old, digest=hashes.SHA224())
    with pytest.raises(Untrusted, match="CN=between is signed with sha224"):
        check(der(between.leaf(KEY)), [der(between.certificate)], [der(old.certificate)], NOW.timestamp())


def test_a_chain_of_eight_is_short_and_of_nine_long() -> None:
    authorities = [Authority("0")]
    for number in range(1, 10):
        authorities.append(Authority(str(number), authorities[-1]))
    root = [der(authorities[0].certificate)]
    chain = [der(one.certificate) for one in authorities[1:9]]
    check(der(authorities[8].leaf(KEY)), list(reversed(chain)), root, NOW.timestamp())
    with pytest.raises(Untrusted):
        check(der(authorities[9].leaf(KEY)), [*chain, der(authorities[9].certificate)], root, NOW.timestamp())
    noise = [b"\x30\x03\x02\x01\x01"]
    check(der(authorities[7].leaf(KEY)), [*chain[:7], *noise], root, NOW.timestamp())


def test_certificates_that_follow_each_other(leaf: bytes, root: bytes) -> None:
    assert encoding.split(leaf + root, 8) == [leaf, root] == encoding.split(leaf + root + bytes(100), 8)
    assert encoding.split(leaf + root, 1) == [leaf] and encoding.split(b"", 8) == encoding.split(b"\xff" * 9, 8) == []
    for bad in (leaf[:-1], leaf + root[:100], b"\x31\x00", leaf + b"\x02\x01\x01"):
        with pytest.raises(ValueError, match="DER"):
            encoding.split(bad, 8)


@pytest.mark.skipif(not ROOTS.is_dir(), reason=f"no certificates of makers in {ROOTS}")
def test_real_makers_certificates_are_read() -> None:
    found = makers.read(str(ROOTS))
    assert found.unreadable == () and len(found.roots) >= 11
    subjects = [ek_certificates.described(one)[0] for one in found.roots]
    assert sum("Nuvoton" in one for one in subjects) == 7
    own = 0
    for raw in found.roots:
        one = ek_certificates._load(raw)
        if one.fields.subject == one.fields.issuer:
            assert ek_certificates._unsigned(one, one) == "", one.fields.subject
            own += 1
    assert own >= 8, "roots sign themselves, and that is verified over the bytes as they came"
