"""The Privacy CA: the content of its certificates, data that must not be in them, and refused certificates."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netspace.attestation import refusals
from netspace.attestation.evidence import Context
from netspace.attestation.registrar import privacy_ca
from netspace.attestation.registrar.privacy_ca import Authority
from netspace.attestation.verifier import ak_certificate, attestation_keys
from netspace.attestation.verifier.attestation_keys import Bound
from netspace.errors import NetspaceError

NOW = 1_700_000_000.0
HOUR, DAY = 3600.0, 86400.0


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def intermediate(root: Authority, name: str = "Privacy CA 1", now: float = NOW, days: float = 365.0) -> Authority:
    key, asked = privacy_ca.request(name)
    return privacy_ca.adopt(key, privacy_ca.sign_request(root, asked, now, days), pem(root.certificate), now)


@pytest.fixture(scope="module")
def root() -> Authority:
    return privacy_ca.root("Test root", NOW)


@pytest.fixture(scope="module")
def ca(root: Authority) -> Authority:
    return intermediate(root)


@pytest.fixture
def bound(fake_tpm: Any, context: Context) -> Bound:
    made = attestation_keys.challenge(fake_tpm.enrolment(), context, roots=[], pinned=None, now=NOW)
    return made.redeem(context.activation(fake_tpm.activate(made.blob, made.encrypted), made._key.name), NOW)


def check(issued: privacy_ca.Issued, bound: Bound, *trusted: Authority, now: float = NOW + HOUR, lists=None):
    return ak_certificate.check(issued.certificate, bound.key.key(), [one.certificate for one in trusted], lists, now)


def test_a_bound_key_is_certified_for_a_day(ca: Authority, bound: Bound) -> None:
    issued = privacy_ca.issue(ca, bound, NOW)
    assert check(issued, bound, ca) == issued.pseudonym
    # In whole hours, for a second would tell one host's renewals from another's.
    assert issued.expires % HOUR == 0 and NOW + DAY <= issued.expires < NOW + DAY + HOUR
    assert check(issued, bound, ca, now=issued.expires - 1) == issued.pseudonym
    for now in (issued.expires + 1, NOW - 2 * HOUR):
        with pytest.raises(refusals.ExpiredAttestationCertificate):
            check(issued, bound, ca, now=now)


def test_it_says_neither_which_host_nor_which_tpm(ca: Authority, bound: Bound) -> None:
    first, second = privacy_ca.issue(ca, bound, NOW), privacy_ca.issue(ca, bound, NOW)
    assert first.pseudonym != second.pseudonym and first.serial != second.serial
    raw = first.certificate
    for secret in (bound.endorsement.raw, bytes.fromhex(bound.endorsement.fingerprint), bound.endorsement.name[2:]):
        assert secret not in raw
    for coordinate in bound.endorsement.unique:
        assert coordinate not in raw
    assert bound.endorsement.fingerprint.encode() not in raw


def test_openssl_agrees(ca: Authority, root: Authority, bound: Bound, tmp_path: Path) -> None:
    import shutil
    import subprocess

    if shutil.which("openssl") is None:
        pytest.skip("openssl is missing")
    issued = privacy_ca.issue(ca, bound, NOW)
    (tmp_path / "leaf").write_bytes(pem(x509.load_der_x509_certificate(issued.certificate)))
    (tmp_path / "ca").write_bytes(pem(ca.certificate))
    (tmp_path / "root").write_bytes(pem(root.certificate))
    (tmp_path / "crl").write_bytes(privacy_ca.revocations(ca, {}, NOW))
    command = ["openssl", "verify", "-x509_strict", "-attime", str(int(NOW + HOUR)), "-CAfile", "root", "-untrusted"]
    command += ["ca", "-CRLfile", "crl", "-crl_check", "leaf"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    (tmp_path / "crl").write_bytes(privacy_ca.revocations(ca, {issued.serial: NOW}, NOW))
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode != 0


def test_certificate_of_another_key(ca: Authority, bound: Bound, fake_tpm: Any, context: Context) -> None:
    other = type(fake_tpm)()
    made = attestation_keys.challenge(other.enrolment(), context, roots=[], pinned=None, now=NOW)
    theirs = made.redeem(context.activation(other.activate(made.blob, made.encrypted), made._key.name), NOW)
    with pytest.raises(refusals.WrongAttestationCertificate, match="another key"):
        check(privacy_ca.issue(ca, theirs, NOW), bound, ca)


def test_certificate_by_another_ca(ca: Authority, bound: Bound) -> None:
    other = intermediate(privacy_ca.root("Test root", NOW))  # of the same names
    with pytest.raises(refusals.WrongAttestationCertificate, match="no trusted CA"):
        check(privacy_ca.issue(other, bound, NOW), bound, ca)
    with pytest.raises(refusals.WrongAttestationCertificate, match="no trusted CA"):
        check(privacy_ca.issue(ca, bound, NOW), bound)


def test_a_cas_own_certificate_attests_nothing(ca: Authority, root: Authority) -> None:
    """The CA's own certificate is refused as an attestation key's, even if the sender holds the CA's key."""

    raw = ca.certificate.public_bytes(serialization.Encoding.DER)
    with pytest.raises(refusals.WrongAttestationCertificate, match="not an attestation key's"):
        ak_certificate.check(raw, ca.key.public_key(), [root.certificate], None, NOW)


@pytest.mark.parametrize(("is_ca", "good"), [(False, True), (True, False)])
def test_an_attestation_key_that_is_called_a_ca(ca: Authority, bound: Bound, is_ca: bool, good: bool) -> None:
    builder = privacy_ca._builder(privacy_ca._name("x"), ca.certificate.subject, NOW, DAY).public_key(bound.key.key())
    builder = builder.add_extension(x509.BasicConstraints(is_ca, None), True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([x509.ObjectIdentifier(ak_certificate.USAGE)]), False)
    raw = privacy_ca._signed(builder, ca.key, ca.key.public_key()).public_bytes(serialization.Encoding.DER)
    try:
        assert ak_certificate.check(raw, bound.key.key(), [ca.certificate], None, NOW) == "x" and good
    except refusals.WrongAttestationCertificate:
        assert not good


def test_rotation_old_and_new_are_trusted_together(ca: Authority, root: Authority, bound: Bound) -> None:
    new = intermediate(root, "Privacy CA 2")
    for one in (ca, new):
        assert check(privacy_ca.issue(one, bound, NOW), bound, ca, new)


def test_nothing_outlives_its_issuer(root: Authority, bound: Bound) -> None:
    short = intermediate(root, days=0.5)
    issued = privacy_ca.issue(short, bound, NOW)
    assert issued.expires == NOW + DAY / 2
    with pytest.raises(refusals.ExpiredAttestationCertificate):
        check(issued, bound, short, now=NOW + DAY / 2)
    with pytest.raises(NetspaceError, match="valid from"):
        privacy_ca.issue(short, bound, NOW + DAY)
    brief = privacy_ca.root("Brief root", NOW, days=2)
    assert intermediate(brief).certificate.not_valid_after_utc == brief.certificate.not_valid_after_utc


def test_revocation(ca: Authority, bound: Bound) -> None:
    issued, other = privacy_ca.issue(ca, bound, NOW), privacy_ca.issue(ca, bound, NOW)
    good = privacy_ca.revocations(ca, {other.serial: NOW}, NOW)
    assert check(issued, bound, ca, lists=[good]) == issued.pseudonym
    with pytest.raises(refusals.RevokedAttestationCertificate, match="was revoked"):
        check(other, bound, ca, lists=[good])


@pytest.mark.parametrize("case", ["none", "old", "early", "another CA's", "noise", "changed"])
def test_a_revocation_list_that_can_not_tell(ca: Authority, root: Authority, bound: Bound, case: str) -> None:
    lists: dict[str, list[bytes]] = {
        "none": [],
        "old": [privacy_ca.revocations(ca, {}, NOW - 2 * DAY)],
        "early": [privacy_ca.revocations(ca, {}, NOW + DAY)],
        "another CA's": [privacy_ca.revocations(intermediate(root), {}, NOW)],
        "noise": [b"noise"],
        "changed": [privacy_ca.revocations(ca, {}, NOW).replace(b"M", b"N", 1)],
    }
    with pytest.raises(refusals.RevokedAttestationCertificate, match="no fresh"):
        check(privacy_ca.issue(ca, bound, NOW), bound, ca, lists=lists[case])


def test_an_older_list_does_not_undo_a_newer_one(ca: Authority, bound: Bound) -> None:
    issued = privacy_ca.issue(ca, bound, NOW)
    before = privacy_ca.revocations(ca, {}, NOW)
    after = privacy_ca.revocations(ca, {issued.serial: NOW + 60}, NOW + 60)
    for lists in ([before, after], [after, before]):
        with pytest.raises(refusals.RevokedAttestationCertificate):
            check(issued, bound, ca, lists=lists)


def test_only_an_intermediate_issues(root: Authority, ca: Authority, bound: Bound) -> None:
    with pytest.raises(NetspaceError, match="only intermediates"):
        privacy_ca.issue(root, bound, NOW)
    with pytest.raises(NetspaceError, match="take the request to the root"):
        privacy_ca.sign_request(ca, privacy_ca.request("x")[1], NOW)


def test_what_may_not_be_adopted(root: Authority, ca: Authority, bound: Bound) -> None:
    key, asked = privacy_ca.request("New")
    signed = privacy_ca.sign_request(root, asked, NOW, days=1)
    other = privacy_ca.root("Test root", NOW)
    leaf = pem(x509.load_der_x509_certificate(privacy_ca.issue(ca, bound, NOW).certificate))
    for arguments, message in (
        ((ca.key, signed, pem(root.certificate), NOW), "another key"),
        ((key, signed, pem(other.certificate), NOW), "not by this root"),
        ((key, signed, pem(root.certificate), NOW + 2 * DAY), "valid from"),
        ((key, signed, leaf, NOW), "not a CA"),
        ((key, b"noise", pem(root.certificate), NOW), "certificate"),
    ):
        with pytest.raises(NetspaceError, match=message):
            privacy_ca.adopt(*arguments)


def test_requests_that_are_none(root: Authority) -> None:
    _, asked = privacy_ca.request("New")
    for bad in (b"", asked[:100], asked.replace(b"M", b"N", 3)):
        with pytest.raises(NetspaceError, match="certificate request"):
            privacy_ca.sign_request(root, bad, NOW)
    with pytest.raises(NetspaceError, match="another name"):
        privacy_ca.sign_request(root, privacy_ca.request("Test root")[1], NOW)
    for name in ("", "x" * 65):
        with pytest.raises(NetspaceError, match="characters"):
            privacy_ca.request(name)


def test_one_tpm_serving_two_minions() -> None:
    owners = {"aa" * 32: "web1"}
    privacy_ca.claim(owners, "aa" * 32, "web1")
    privacy_ca.claim(owners, "bb" * 32, "web2")
    with pytest.raises(refusals.SharedEndorsementKey, match="bound to web1"):
        privacy_ca.claim(owners, "aa" * 32, "web2")


def test_kept_on_disk_for_its_user_alone(ca: Authority, root: Authority, tmp_path: Path) -> None:
    folder = tmp_path / "ca"
    privacy_ca.save(ca, folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "authority.pem").stat().st_mode & 0o777 == 0o600
    loaded = privacy_ca.load(folder)
    assert loaded.certificate == ca.certificate and loaded.chain == (root.certificate,)
    assert "PRIVATE" not in repr(loaded)
    (folder / "authority.pem").chmod(0o640)
    with pytest.raises(NetspaceError, match="0640"):
        privacy_ca.load(folder)
    (folder / "authority.pem").chmod(0o600)
    folder.chmod(0o770)
    with pytest.raises(NetspaceError, match="0770"):
        privacy_ca.load(folder)
    with pytest.raises(NetspaceError, match="0770"):
        privacy_ca.save(ca, folder)


def test_a_folder_that_is_no_ca(ca: Authority, root: Authority, tmp_path: Path) -> None:
    with pytest.raises(NetspaceError, match="no CA that can be used"):
        privacy_ca.load(tmp_path / "none")
    folder = tmp_path / "ca"
    privacy_ca.save(ca, folder)
    path = folder / "authority.pem"
    whole = path.read_bytes()
    key = whole[: whole.index(b"-----BEGIN CERTIFICATE")]
    privacy_ca.save(root, folder)
    path.write_bytes(key + (folder / "chain.pem").read_bytes())
    with pytest.raises(NetspaceError, match="does not belong to the certificate"):
        privacy_ca.load(folder)
    for cut in (whole[:50], key, whole[len(key) :]):
        path.write_bytes(cut)
        with pytest.raises(NetspaceError) as caught:
            privacy_ca.load(folder)
        assert "PRIVATE" not in str(caught.value)


@pytest.fixture
def made(ca: Authority, bound: Bound) -> list[privacy_ca.Issued]:
    return [privacy_ca.issue(ca, bound, NOW)]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_no_mutation_is_accepted(data: st.DataObject, ca: Authority, bound: Bound, made: list) -> None:
    genuine = made[0]
    raw = bytearray(genuine.certificate)
    at = data.draw(st.integers(0, 4095)) % len(raw)
    raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    if bytes(raw) == genuine.certificate:
        return
    try:
        ak_certificate.check(bytes(raw), bound.key.key(), [ca.certificate], None, NOW + HOUR)
    except refusals.Refused:
        return
    raise AssertionError(f"accepted with a change at {at}")


def test_time_is_an_argument(ca: Authority) -> None:
    assert ca.certificate.not_valid_before_utc < datetime.datetime(2023, 11, 15, tzinfo=datetime.timezone.utc)
