"""SEV-SNP: recorded reports are verified, and every changed report is refused."""

from __future__ import annotations

import datetime
import functools
import itertools
from typing import Any

import pytest
from cryptography import x509 as pyca
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attestation import tee_forge
from support.attestation.boot_logs import THEN, recorded
from support.attestation.tee_forge import CHIP, NOW, Amd, table

from netspace.attestation import refusals
from netspace.attestation.tee import snp, x509
from netspace.attestation.tee.x509 import Trust

RECORDED = {
    "a host of Milan": ("go-sev-guest/attestation.bin", "go-sev-guest/vcek.testcer"),
    "VCEK": ("trustee/snp/test-report.bin", "trustee/snp/test-vcek.der"),
    "VLEK": ("trustee/snp/test-vlek-report.bin", "trustee/snp/test-vlek.der"),
}


def amd() -> list[bytes]:
    """Return AMD's certificates: ARK, ASK, ASVK."""
    names = ("ask_ark_milan.pem", "ask_ark_milan_vlek.pem", "ask_ark_genoa.pem")
    loaded = [pyca.load_pem_x509_certificates(recorded(f"go-sev-guest/{name}")) for name in names]
    return [one.public_bytes(Encoding.DER) for each in loaded for one in each]


def trust(leaf: str) -> Trust:
    found = amd()
    roots = tuple(one for one in found if x509.is_root(x509.load(one)))
    return Trust(roots, (*(one for one in found if one not in roots), recorded(leaf)))


@pytest.mark.parametrize(("report", "leaf"), RECORDED.values(), ids=RECORDED)
def test_recorded_reports_are_genuine(report: str, leaf: str) -> None:
    found = snp.genuine(recorded(report), b"", trust(leaf), THEN)
    assert found.kind == "snp" and len(found.measurement) == 48 and found.tcb["snp"] in (5, 8, 24)
    assert found.settings["key"] == ("vlek" if "vlek" in leaf else "vcek")
    assert bool(found.debug) == ("go-sev-guest" in report)
    assert found.settings["provider"] == ("CN=cc-us-east-2.amazonaws.com" if "vlek" in leaf else "")


@pytest.mark.parametrize(("report", "leaf"), RECORDED.values(), ids=RECORDED)
def test_each_byte_of_a_recorded_report_counts(report: str, leaf: str) -> None:
    raw, given = recorded(report), trust(leaf)
    for at in range(len(raw)):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        with pytest.raises(refusals.Refused) as err:
            snp.genuine(changed, b"", given, THEN)
        assert err.value.code in ("tee-malformed", "tee-signature", "tee-untrusted"), at


def test_recorded_reports_with_each_others_certificates_fail() -> None:
    for report, own in RECORDED.values():
        for _, other in RECORDED.values():
            if other != own:
                with pytest.raises(refusals.TeeUntrusted, match="there is no"):
                    snp.genuine(recorded(report), b"", trust(other), THEN)


def test_a_recorded_vlek_out_of_its_time_is_untrusted() -> None:
    report, leaf = RECORDED["VLEK"]
    with pytest.raises(refusals.TeeUntrusted, match="valid from"):
        snp.genuine(recorded(report), b"", trust(leaf), THEN + 365 * 86400)


def test_a_report_with_the_certificates_of_its_host() -> None:
    maker = Amd()
    brought = table((tee_forge.VCEK_GUID, maker.leaf()), (tee_forge.ASK_GUID, maker.ask))
    found = snp.genuine(maker.report(b"d" * 64), brought, Trust((maker.root,)), NOW)
    assert found.report_data == b"d" * 64 and found.measurement == tee_forge.LAUNCH and not found.debug
    assert found.settings == {
        "smt": True,
        "migration": False,
        "single_socket": False,
        "alias_check": False,
        "vmpl": 0,
        "host_data": bytes(32),
        "id_key": bytes(48),
        "author_key": bytes(48),
        "chip": CHIP,
        "key": "vcek",
        "provider": "",
    }


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_each_version_of_a_report_is_read(version: int) -> None:
    maker = Amd()
    family = 0x19 if version > 2 else 0
    mitigations = b"\3" + bytes(15) if version > 3 else bytes(16)
    report = maker.report(version=version, family=family, mitigations=mitigations)
    found = snp.genuine(report, b"", maker.trust(maker.leaf()), NOW)
    assert found.shown["version"] == version and found.tcb == tee_forge.TCB


def test_turin_has_other_places_and_a_short_identifier() -> None:
    maker = Amd()
    tcb = {"fmc": 1, "bootloader": 2, "tee": 3, "snp": 4, "microcode": 85}
    chip = b"turin-id"
    report = maker.report(version=3, family=0x1A, tcb=bytes([1, 2, 3, 4, 0, 0, 0, 85]), chip=chip.ljust(64, b"\0"))
    assert snp.genuine(report, b"", maker.trust(maker.leaf(tcb, chip)), NOW).tcb == tcb
    with pytest.raises(refusals.TeeUntrusted):
        snp.genuine(report, b"", maker.trust(maker.leaf({**tcb, "fmc": 2}, chip)), NOW)


def test_each_flipped_bit_of_a_report_is_refused() -> None:
    maker = Amd()
    raw, trusted = maker.report(b"d" * 64, version=5, family=0x19), maker.trust(maker.leaf())
    snp.genuine(raw, b"", trusted, NOW)
    for at in range(len(raw)):
        for bit in (0, 7):
            changed = raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :]
            with pytest.raises(refusals.Refused):
                snp.genuine(changed, b"", trusted, NOW)


CHANGED = {
    "version 1": {"version": 1},
    "version 6": {"version": 6},
    "mitigations before there were any": {"version": 3, "mitigations": b"\1" * 16},
    "no key": {"flags": 7 << 2},
    "reserved flag": {"flags": 1 << 9},
    "VMPL 4": {"vmpl": 4},
    "reserved TCB": {"tcb": bytes([3, 0, 1, 0, 0, 0, 8, 115])},
}


@pytest.mark.parametrize("changes", CHANGED.values(), ids=CHANGED)
def test_a_report_that_is_none_is_malformed(changes: dict[str, object]) -> None:
    maker = Amd()
    with pytest.raises(refusals.TeeMalformed):
        snp.genuine(maker.report(**changes), b"", maker.trust(maker.leaf()), NOW)


@pytest.mark.parametrize("size", [0, 1, 671, 1183, 1185, 4000])
def test_a_report_of_another_size_is_malformed(size: int) -> None:
    with pytest.raises(refusals.TeeMalformed, match="bytes instead of"):
        snp.parse(bytes(size))


def test_the_certificate_must_be_for_the_chip() -> None:
    maker = Amd()
    other = maker.leaf(chip=bytes(63) + b"\1")
    with pytest.raises(refusals.TeeCertificate, match="for chip"):
        snp.genuine(maker.report(), table((tee_forge.VCEK_GUID, other)), maker.trust(), NOW)
    with pytest.raises(refusals.TeeUntrusted, match="there is no VCEK"):
        snp.genuine(maker.report(), b"", maker.trust(other), NOW)


def test_a_masked_chip_identifier_fits_no_certificate() -> None:
    maker = Amd()
    leaf = maker.leaf(chip=bytes(64))
    with pytest.raises(refusals.TeeCertificate):
        snp.genuine(maker.report(chip=bytes(64)), table((tee_forge.VCEK_GUID, leaf)), maker.trust(), NOW)


@pytest.mark.parametrize("part", ["bootloader", "tee", "snp", "microcode"])
def test_the_certificate_must_be_for_the_reported_tcb(part: str) -> None:
    maker = Amd()
    leaf = maker.leaf({**tee_forge.TCB, part: 200})
    with pytest.raises(refusals.TeeCertificate, match="TCB"):
        snp.genuine(maker.report(), table((tee_forge.VCEK_GUID, leaf)), maker.trust(), NOW)


def test_vcek_and_vlek_do_not_stand_for_each_other() -> None:
    maker = Amd()
    vcek, vlek = maker.leaf(), maker.leaf(chip=None, csp=b"cloud")
    for flags, leaf in ((0, vlek), (1 << 2, vcek)):
        with pytest.raises(refusals.TeeCertificate, match="other kind"):
            snp.genuine(maker.report(flags=flags), table((tee_forge.VLEK_GUID, leaf)), maker.trust(), NOW)
    found = snp.genuine(maker.report(flags=1 << 2), table((tee_forge.VLEK_GUID, vlek)), maker.trust(), NOW)
    assert found.settings["provider"] == "cloud"


@pytest.mark.parametrize("flags", [0, 1 << 2], ids=["VCEK", "VLEK"])
def test_a_certificate_that_fits_and_is_for_another_key_hides_no_other(flags: int) -> None:
    """Several certificates match a report's fields, but only one has the right key: it is found at any position.

    A provider's VLEKs for one TCB match in this way, and so does a false VCEK from the host.
    """
    maker = Amd()
    how: dict[str, Any] = {"chip": None, "csp": b"cloud"} if flags else {}
    good, report = maker.leaf(**how), maker.report(flags=flags)
    other = maker.leaf(key=ec.generate_private_key(ec.SECP384R1()), **how)
    curve = maker.leaf(key=ec.generate_private_key(ec.SECP256R1()), **how)
    odd = maker.leaf({**tee_forge.TCB, "tee": 1 << 80}, **how)
    for wrong in (other, curve, odd):
        snp.genuine(report, b"", maker.trust(wrong, good), NOW)
        snp.genuine(report, table((tee_forge.VCEK_GUID, wrong)), maker.trust(good), NOW)
    for brought in (b"", table((tee_forge.VCEK_GUID, curve))):
        with pytest.raises(refusals.TeeSignature):
            snp.genuine(report, brought, maker.trust(other, odd), NOW)
    for wrong, problem in ((curve, "P-384"), (odd, "version of tee")):
        with pytest.raises(refusals.TeeCertificate, match=problem):
            snp.genuine(report, table((tee_forge.VCEK_GUID, wrong)), maker.trust(), NOW)


def test_a_chain_of_another_maker_is_untrusted() -> None:
    maker, forger = Amd(), Amd("forger")
    brought = table((tee_forge.VCEK_GUID, forger.leaf()), (tee_forge.ASK_GUID, forger.ask))
    for trusted in (maker.trust(), Trust()):
        with pytest.raises(refusals.TeeUntrusted):
            snp.genuine(forger.report(), brought, trusted, NOW)


def test_a_root_that_comes_with_the_report_is_no_root() -> None:
    forger = Amd("forger")
    ark = ("c0b406a4-a803-4952-9743-3fb6014cd0ae", forger.root)
    brought = table((tee_forge.VCEK_GUID, forger.leaf()), (tee_forge.ASK_GUID, forger.ask), ark)
    with pytest.raises(refusals.TeeUntrusted):
        snp.genuine(forger.report(), brought, Amd().trust(), NOW)


def test_a_processor_that_issues_certificates_is_no_ca() -> None:
    maker = Amd()
    evil = ec.generate_private_key(ec.SECP384R1())
    leaf = tee_forge.issue("evil", evil, "SEV-VCEK", maker.key, False, [(tee_forge.AMD + "3.3", tee_forge.integer(8))])
    with pytest.raises(refusals.TeeUntrusted, match="not a CA"):
        x509.check(x509.load(leaf), [x509.load(maker.leaf())], maker.trust(), NOW)


def test_a_path_is_found_past_an_issuer_that_has_none() -> None:
    """A chain is found although an expired certificate of the same issuer and key is beside the good one."""
    maker = Amd()
    old = tee_forge.issue(
        "SEV-Milan", maker.ask_key, "ARK", maker.root_key, True, end=tee_forge.START + datetime.timedelta(days=1)
    )
    for known in ((old, maker.ask), (maker.ask, old)):
        snp.genuine(maker.report(), b"", Trust((maker.root,), (*known, maker.leaf())), NOW)


def test_the_operators_certificates_are_read_once_however_many(monkeypatch: pytest.MonkeyPatch) -> None:
    maker, key = Amd(), ec.generate_private_key(ec.SECP256R1())
    many = [tee_forge.issue("other", key, "other", key, False, serial=number) for number in range(1, 1100)]
    trusted = maker.trust(*many, maker.leaf(), lists=[tee_forge.revocations("ARK", maker.root_key, [])])
    snp.genuine(maker.report(), b"", trusted, NOW)
    for name in ("load_der_x509_certificate", "load_der_x509_crl"):
        monkeypatch.delattr(f"cryptography.x509.{name}")
    assert snp.genuine(maker.report(b"d" * 64), b"", trusted, NOW).report_data == b"d" * 64


def test_look_alike_issuers_take_no_time() -> None:
    maker = Amd()
    names = [("SEV-Milan", "X"), ("X", "SEV-Milan")] * 14
    evil = [
        tee_forge.issue(subject, maker.ask_key, issuer, maker.ask_key, True, serial=100 + number)
        for number, (subject, issuer) in enumerate(names)
    ]
    brought = table((tee_forge.VCEK_GUID, maker.leaf()), *((tee_forge.ASK_GUID, one) for one in evil))
    with pytest.raises(refusals.TeeUntrusted, match="more than 64"):
        snp.genuine(maker.report(), brought, Trust((maker.root,)), NOW)


def test_a_path_of_more_intermediates_than_there_are_is_none() -> None:
    maker = Amd()
    names = ["SEV-Milan", "A", "B", "C", "ARK"]
    between = [
        tee_forge.issue(subject, maker.ask_key, issuer, maker.ask_key if issuer != "ARK" else maker.root_key, True)
        for subject, issuer in itertools.pairwise(names)
    ]
    with pytest.raises(refusals.TeeUntrusted):
        snp.genuine(maker.report(), b"", Trust((maker.root,), (*between, maker.leaf())), NOW)


def test_a_revoked_intermediate_is_refused() -> None:
    maker = Amd()
    good = maker.trust(maker.leaf(), lists=[tee_forge.revocations("ARK", maker.root_key, [99])])
    snp.genuine(maker.report(), b"", good, NOW)
    bad = maker.trust(maker.leaf(), lists=[tee_forge.revocations("ARK", maker.root_key, [8])])
    with pytest.raises(refusals.TeeRevoked):
        snp.genuine(maker.report(), b"", bad, NOW)
    old = tee_forge.revocations("ARK", maker.root_key, [], tee_forge.START + datetime.timedelta(days=1))
    with pytest.raises(refusals.TeeUntrusted, match="revocation list"):
        snp.genuine(maker.report(), b"", maker.trust(maker.leaf(), lists=[old]), NOW)
    forged = tee_forge.revocations("ARK", Amd("forger").root_key, [8])
    snp.genuine(maker.report(), b"", maker.trust(maker.leaf(), lists=[forged]), NOW)


def test_a_certificate_out_of_its_time_is_untrusted() -> None:
    maker = Amd()
    for moment in (NOW - 400 * 86400, NOW + 4000 * 86400):
        with pytest.raises(refusals.TeeUntrusted, match="valid from"):
            snp.genuine(maker.report(), b"", maker.trust(maker.leaf()), moment)


def test_the_tcb_of_the_launch_counts_where_it_is_lower() -> None:
    maker = Amd()
    report = maker.report(launch_tcb=bytes([2, 0, 0, 0, 0, 0, 9, 115]))
    found = snp.genuine(report, b"", maker.trust(maker.leaf()), NOW)
    assert found.tcb == {"bootloader": 2, "tee": 0, "snp": 8, "microcode": 115}


def test_a_table_that_points_outside_is_malformed() -> None:
    good = table((tee_forge.VCEK_GUID, b"certificate"))
    assert snp.certificates(good) == [b"certificate"]
    for end in range(1, len(good)):
        with pytest.raises(refusals.TeeMalformed):
            snp.certificates(good[:end])
    with pytest.raises(refusals.TeeMalformed, match="entries"):
        snp.certificates((b"\1" * 16 + bytes(8)) * 40)


@functools.cache
def brought_report() -> tuple[bytes, bytes]:
    """Return a report and its host's table. They are made once, because a new signature would change the bytes."""
    maker = Amd()
    chain = table((tee_forge.VCEK_GUID, maker.leaf()), (tee_forge.ASK_GUID, maker.ask))
    return maker.report(b"d" * 64, version=3, family=0x19), chain


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutations_give_a_report_or_a_refusal(data: st.DataObject) -> None:
    raw, brought = map(bytearray, brought_report())
    for target in (raw, brought):
        for _ in range(data.draw(st.integers(0, 3))):
            at = data.draw(st.integers(0, len(target) - 1))
            target[at : at + data.draw(st.integers(1, 3))] = data.draw(st.binary(max_size=4))
    try:
        found = snp.genuine(bytes(raw), bytes(brought), Trust((Amd().root,)), NOW)
    except refusals.Refused as err:
        assert err.code.startswith("tee-")
    else:
        assert found.report_data == b"d" * 64
