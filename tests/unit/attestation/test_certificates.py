"""Chains of endorsement certificates: accepted ones, and one test for each reason of a refusal."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID, ObjectIdentifier
from hypothesis import given, settings
from hypothesis import strategies as st

from netspace.attestation import refusals
from netspace.attestation.endorsement import ek_certificates, makers
from netspace.attestation.endorsement.ek_certificates import Untrusted, check
from netspace.attestation.verifier import attestation_keys
from netspace.errors import NetspaceError

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
DAY = datetime.timedelta(days=1)
EK_USAGE = ObjectIdentifier("2.23.133.8.1")


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def usage(**given: bool) -> x509.KeyUsage:
    keys = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    keys += ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{key: given.get(key, False) for key in keys})


class Authority:
    def __init__(self, title: str, issuer: Authority | None = None, **options: object) -> None:
        self.title = title
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = (issuer or self).issue(
            title,
            self.key.public_key(),
            options.pop("basic", x509.BasicConstraints(True, options.pop("depth", None))),
            options.pop("usage", usage(key_cert_sign=True)),
            **options,
        )

    def issue(self, subject: str, key, *extensions, start=NOW - DAY, end=NOW + DAY, critical=True, digest=None):
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name(self.title))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
        )
        for extension in extensions:
            if extension is not None:
                builder = builder.add_extension(extension, critical)
        return builder.sign(self.key, digest or hashes.SHA256())

    def leaf(self, key, **options: object):
        """Return an EK certificate in the form of TCG's profile.

        It has no subject, and a critical alternative name of directory names.
        """
        tpm = x509.Name([x509.NameAttribute(ObjectIdentifier("2.23.133.2.1"), "id:00001014")])
        extensions = [
            x509.SubjectAlternativeName([x509.DirectoryName(tpm)]),
            options.pop("basic", x509.BasicConstraints(False, None)),
            options.pop("usage", usage(key_encipherment=True)),
            options.pop("extended", x509.ExtendedKeyUsage([EK_USAGE])),
            options.pop("more", None),
        ]
        return self.issue("", key, *extensions, **options)


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


KEY = ec.generate_private_key(ec.SECP256R1()).public_key()
ROOT = Authority("root")
MIDDLE = Authority("middle", ROOT)
# Made once: hypothesis wants the same bytes in each run of an example.
LEAF = der(ROOT.leaf(KEY))


def judge(leaf: x509.Certificate, chain=(), roots=(ROOT.certificate,)) -> None:
    check(der(leaf), [der(one) for one in chain], [der(one) for one in roots], NOW.timestamp())


def test_chains_that_are_good() -> None:
    judge(ROOT.leaf(KEY))
    judge(MIDDLE.leaf(KEY), [MIDDLE.certificate])
    judge(MIDDLE.leaf(KEY), roots=[ROOT.certificate, MIDDLE.certificate])
    judge(ROOT.leaf(KEY, extended=None, basic=None))
    judge(ROOT.leaf(rsa.generate_private_key(65537, 2048).public_key(), usage=usage(key_encipherment=True)))


def test_a_root_with_the_same_name() -> None:
    with pytest.raises(Untrusted, match="did not sign"):
        judge(ROOT.leaf(KEY), roots=[Authority("root").certificate])
    judge(ROOT.leaf(KEY), roots=[Authority("root").certificate, ROOT.certificate])


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (ROOT.leaf(KEY, end=NOW - DAY / 2), "is valid from"),
        (ROOT.leaf(KEY, start=NOW + DAY / 2), "is valid from"),
        (ROOT.leaf(KEY, extended=x509.ExtendedKeyUsage([ObjectIdentifier("1.3.6.1.5.5.7.3.1")])), "another use"),
        (ROOT.leaf(KEY, usage=usage(digital_signature=True)), "decryption"),
        (ROOT.leaf(KEY, basic=x509.BasicConstraints(True, None)), "is a CA's"),
        (ROOT.leaf(KEY, more=x509.UnrecognizedExtension(ObjectIdentifier("1.2.3"), b"\5\0")), r"extension 1\.2\.3"),
        (ROOT.leaf(ec.generate_private_key(ec.SECP192R1()).public_key()), "neither RSA nor"),
        (MIDDLE.leaf(KEY), "not among the roots"),
    ],
)
def test_leaves_that_are_not(leaf: x509.Certificate, message: str) -> None:
    with pytest.raises(Untrusted, match=message):
        judge(leaf)


@pytest.mark.parametrize(
    "options",
    [
        {"basic": x509.BasicConstraints(False, None)},
        {"basic": None},
        {"usage": usage(crl_sign=True)},
        {"usage": None},
        {"end": NOW - DAY / 2},
    ],
)
def test_intermediates_that_may_not_issue(options: dict) -> None:
    bad = Authority("bad", ROOT, **options)
    with pytest.raises(Untrusted):
        judge(bad.leaf(KEY), [bad.certificate])


def test_an_endorsement_key_can_not_issue() -> None:
    """A certificate is refused if a genuine TPM's endorsement key issued it."""
    key = ec.generate_private_key(ec.SECP256R1())
    forger = Authority("forger", ROOT)
    forger.key, forger.certificate = key, ROOT.leaf(key.public_key())
    with pytest.raises(Untrusted):
        judge(forger.leaf(KEY), [forger.certificate])


def test_path_length() -> None:
    narrow = Authority("narrow", depth=0)
    below = Authority("below", narrow)
    judge(narrow.leaf(KEY), roots=[narrow.certificate])
    with pytest.raises(Untrusted):
        judge(below.leaf(KEY), [below.certificate], [narrow.certificate])


def test_loops_and_long_chains_end() -> None:
    one, two = Authority("one"), Authority("two")
    crossed = [
        one.issue("two", two.key.public_key(), x509.BasicConstraints(True, None), usage(key_cert_sign=True)),
        two.issue("one", one.key.public_key(), x509.BasicConstraints(True, None), usage(key_cert_sign=True)),
    ]
    with pytest.raises(Untrusted, match="not among the roots"):
        judge(one.leaf(KEY), crossed * 2)
    with pytest.raises(Untrusted, match="more than"):
        judge(one.leaf(KEY), crossed * 5)


def test_no_roots() -> None:
    with pytest.raises(Untrusted, match="no root certificates"):
        judge(ROOT.leaf(KEY), roots=[])


# -- revocation lists ---------------------------------------------------------------------
def crl(issuer: Authority, *revoked: x509.Certificate, start=NOW - DAY, end=NOW + DAY, more=None) -> bytes:
    builder = x509.CertificateRevocationListBuilder().issuer_name(name(issuer.title))
    builder = builder.last_update(start).next_update(end)
    for one in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(one.serial_number).revocation_date(start).build()
        builder = builder.add_revoked_certificate(entry)
    if more is not None:
        builder = builder.add_extension(more, True)
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


SIGNS = usage(key_cert_sign=True, crl_sign=True)
SIGNING = Authority("a maker with lists", usage=SIGNS)


def told(leaf: x509.Certificate, lists: list[bytes], chain=(), roots=()) -> None:
    found = [ek_certificates.revocations(one) for one in lists]
    check(der(leaf), [der(one) for one in chain], [der(one) for one in roots], NOW.timestamp(), found)


def test_a_maker_who_revoked_an_endorsement_certificate() -> None:
    maker = Authority("maker", usage=SIGNS)
    bad, good = maker.leaf(KEY), maker.leaf(KEY)
    told(good, [crl(maker, bad)], roots=[maker.certificate])
    with pytest.raises(refusals.RevokedEndorsementCertificate):
        told(bad, [crl(maker, bad)], roots=[maker.certificate])


def test_a_maker_who_revoked_an_intermediate_wherever_it_lies() -> None:
    maker = Authority("maker", usage=SIGNS)
    middle = Authority("middle", maker)
    leaf, lists = middle.leaf(KEY), [crl(maker, middle.certificate)]
    told(leaf, [crl(maker)], [middle.certificate], [maker.certificate])
    with pytest.raises(refusals.RevokedEndorsementCertificate):
        told(leaf, lists, [middle.certificate], [maker.certificate])
    with pytest.raises(refusals.RevokedEndorsementCertificate):
        told(leaf, lists, [], [middle.certificate, maker.certificate])


@pytest.mark.parametrize(
    ("start", "end"), [(NOW - 3 * DAY, NOW - DAY), (NOW + DAY, NOW + 2 * DAY)], ids=["old", "from the future"]
)
def test_a_list_that_can_not_tell_now_is_as_no_trust_in_its_maker(start, end) -> None:
    maker = Authority("maker", usage=SIGNS)
    with pytest.raises(Untrusted, match="put a newer one"):
        told(maker.leaf(KEY), [crl(maker, start=start, end=end)], roots=[maker.certificate])


def test_the_newest_list_counts_and_an_old_revocation_is_never_forgotten_by_running_out() -> None:
    maker = Authority("maker", usage=SIGNS)
    leaf = maker.leaf(KEY)
    old = crl(maker, start=NOW - 5 * DAY, end=NOW - 4 * DAY)
    for lists in ([old, crl(maker, leaf)], [crl(maker, leaf), old], [crl(maker, leaf, end=NOW - DAY / 2)]):
        with pytest.raises(refusals.RevokedEndorsementCertificate):
            told(leaf, lists, roots=[maker.certificate])


def test_lists_of_others_say_nothing() -> None:
    maker, namesake = Authority("maker", usage=SIGNS), Authority("maker", usage=SIGNS)
    leaf = maker.leaf(KEY)
    told(leaf, [crl(namesake, leaf), crl(Authority("other", usage=SIGNS), leaf)], roots=[maker.certificate])
    told(leaf, [crl(namesake, leaf)], roots=[maker.certificate, namesake.certificate])
    unsigning = Authority("maker")  # may sign certificates, not lists
    told(leaf := unsigning.leaf(KEY), [crl(unsigning, leaf)], roots=[unsigning.certificate])


def test_files_that_are_no_list_that_one_can_go_by() -> None:
    maker = Authority("maker", usage=SIGNS)
    part = x509.IssuingDistributionPoint(None, None, True, False, None, False, False)
    for raw, message in (
        (b"noise", "not a revocation list"),
        (der(maker.certificate), "not a revocation list"),
        (crl(maker, more=part), "critical"),
        (crl(maker, more=x509.DeltaCRLIndicator(1)), "critical"),
        (bytes(ek_certificates.MAX_LIST + 1), "at most"),
    ):
        with pytest.raises(NetspaceError, match=message):
            ek_certificates.revocations(raw)


def test_roots_and_lists_are_read_from_one_folder(tmp_path: Path) -> None:
    maker = Authority("maker", usage=SIGNS)
    raw = crl(maker)
    pem = x509.load_der_x509_crl(raw).public_bytes(serialization.Encoding.PEM)
    (tmp_path / "root.pem").write_bytes(maker.certificate.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "a.crl").write_bytes(raw)
    (tmp_path / "b.crl").write_bytes(pem)
    assert makers.read(str(tmp_path)) == makers.Makers((der(maker.certificate),), (raw, raw))
    (tmp_path / "b.crl").write_bytes(b"https://example.org/maker.crl")
    with pytest.raises(NetspaceError, match=r"b\.crl: not a revocation list"):
        makers.read(str(tmp_path))
    assert makers.read(None) == makers.Makers()


def test_padding_of_the_index_is_cut_off() -> None:
    raw = der(ROOT.leaf(KEY))
    assert ek_certificates.der(raw + b"\xff" * 100) == raw
    for bad in (b"", b"\x30\x82", b"\xff" * 200, raw[:-1], b"\x30\x82\xff\xff" + bytes(70000)):
        with pytest.raises(Untrusted):
            ek_certificates.der(bad)


def test_a_second_encoding_of_the_same_certificate_is_untrusted() -> None:
    """A certificate whose signature declares "unused bits" is refused, though these bits are zero and it verifies."""
    while True:
        leaf = ROOT.leaf(KEY)
        if leaf.signature[-1] % 2 == 0:
            break
    raw = bytearray(der(leaf))
    check(bytes(raw), [], [der(ROOT.certificate)], NOW.timestamp())
    raw[-len(leaf.signature) - 1] = 1
    with pytest.raises(Untrusted, match="unused bits"):
        check(bytes(raw), [], [der(ROOT.certificate)], NOW.timestamp())


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutations_are_untrusted(data: st.DataObject) -> None:
    raw = bytearray(LEAF)
    at = data.draw(st.integers(4, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(Untrusted):
        ek_certificates.public_key(ek_certificates.der(bytes(raw)))
        check(bytes(raw), [], [der(ROOT.certificate)], NOW.timestamp())


def test_the_verifier_wants_the_certificate_of_this_key(fake_tpm, context) -> None:
    def level(certificate: bytes, lists: tuple[bytes, ...] = ()) -> int:
        made = attestation_keys.challenge(
            fake_tpm.enrolment(certificate=certificate),
            context,
            roots=[der(ROOT.certificate), der(SIGNING.certificate)],
            pinned=None,
            now=NOW.timestamp(),
            lists=lists,
        )
        secret = fake_tpm.activate(made.blob, made.encrypted)
        return made.redeem(context.activation(secret, made._key.name), NOW.timestamp()).level

    assert level(der(ROOT.leaf(fake_tpm.ek.public_key()))) == 3
    assert level(der(Authority("root").leaf(fake_tpm.ek.public_key()))) == 2
    assert level(b"\xff" * 700) == 2
    with pytest.raises(refusals.WrongEndorsementCertificate):
        level(der(ROOT.leaf(KEY)))
    leaf = SIGNING.leaf(fake_tpm.ek.public_key())
    assert level(der(leaf), (crl(SIGNING),)) == 3
    with pytest.raises(refusals.RevokedEndorsementCertificate):
        level(der(leaf), (crl(SIGNING, leaf),))
