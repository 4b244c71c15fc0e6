"""Evidence of real (software) TPMs, and attacks that change it on its way. Each test is one attack."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from netspace.attestation import refusals
from netspace.attestation.evidence import Context, Enrolment, Evidence, parse
from netspace.attestation.minion import attester
from netspace.attestation.tpm import credential, structures
from netspace.attestation.tpm import device as tpm
from netspace.attestation.verifier import attestation_keys, verifier
from netspace.attestation.verifier.attestation_keys import Bound
from netspace.attestation.verifier.verifier import Expected

PCRS = (0, 1, 2, 3, 4, 5, 6, 7)


def context(nonce: bytes = bytes(range(32))) -> Context:
    return Context("verifier", "host", "session", nonce)


@dataclasses.dataclass
class Lab:
    """A TPM on a socket, with the lock of its host."""

    tcti: str
    lock: Path

    def run(self, work: Callable) -> object:
        return tpm.run(self.tcti, work, lock=self.lock)

    def enrol(self, template: str | None = None) -> Enrolment:
        return self.run(lambda device: attester.enrol(device, template))

    def bind(self, enrolment: Enrolment, ctx: Context) -> Bound:
        challenge = attestation_keys.challenge(enrolment, ctx, roots=[], pinned=None, now=time.time())
        opened = attester.Credential(enrolment.template, challenge.blob, challenge.encrypted)
        answer = self.run(lambda device: attester.activate(device, [opened], ctx))
        return challenge.redeem(answer, time.time())

    def quote(self, ctx: Context, pcrs=PCRS) -> Evidence:
        return self.run(lambda device: attester.by_tpm(device, ctx, pcrs))


@pytest.fixture
def lab(make_tpm: Callable, tmp_path: Path) -> Lab:
    return Lab(make_tpm().tcti, tmp_path / "lock")


@pytest.mark.parametrize("template", ["EK-RSA2048", "EK-ECC256"])
def test_genuine(lab: Lab, template: str) -> None:
    bound = lab.bind(lab.enrol(template), context())
    verified = verifier.verify_quote(lab.quote(context()), bound, Expected(context(), PCRS))
    assert verified.level == 2 and verified.pcrs.keys() == set(PCRS)


def test_genuine_by_an_endorsement_key_of_the_high_range(make_tpm: Callable, factory, tmp_path: Path) -> None:
    lab = Lab(make_tpm(factory).tcti, tmp_path / "lock")
    enrolment = lab.enrol("EK-HIGH-ECC384")
    assert enrolment.certificate is not None
    assert lab.bind(enrolment, context()).level == 2


def test_all_24_pcrs_survive_the_wire(lab: Lab) -> None:
    bound = lab.bind(lab.enrol(), context())
    evidence = parse(lab.quote(context(), range(24)).wire())
    assert verifier.verify_quote(evidence, bound, Expected(context(), range(24))).level == 2


def test_the_attestation_key_of_a_period_is_the_same_each_time(lab: Lab) -> None:
    def of(period: bytes) -> bytes:
        return lab.run(lambda device: attester.enrol(device, None, period)).attestation

    assert of(b"") == of(b"") == lab.enrol().attestation and of(b"1" * 16) == of(b"1" * 16)
    assert len({of(b""), of(b"1" * 16), of(b"2" * 16)}) == 3


@pytest.mark.replay
def test_replayed_nonce(lab: Lab) -> None:
    bound = lab.bind(lab.enrol(), context())
    old = lab.quote(context(b"n" * 32))
    with pytest.raises(refusals.WrongQualifyingData):
        verifier.verify_quote(old, bound, Expected(context(b"m" * 32), PCRS))


@pytest.mark.replay
@pytest.mark.parametrize("change", [{"host": "other"}, {"verifier": "other"}, {"session": "x"}, {"binding": b"k"}])
def test_relayed_to_another(lab: Lab, change: dict) -> None:
    bound = lab.bind(lab.enrol(), context())
    evidence = lab.quote(dataclasses.replace(context(), **change))
    with pytest.raises(refusals.WrongQualifyingData):
        verifier.verify_quote(evidence, bound, Expected(context(), PCRS))


def test_every_flipped_bit_of_a_quote(lab: Lab) -> None:
    bound = lab.bind(lab.enrol(), context())
    genuine = lab.quote(context())
    for field in ("attest", "signature"):
        raw = getattr(genuine, field)
        for at in range(len(raw) * 8):
            forged = bytearray(raw)
            forged[at // 8] ^= 1 << at % 8
            with pytest.raises(refusals.Refused):
                verifier.verify_quote(
                    dataclasses.replace(genuine, **{field: bytes(forged)}), bound, Expected(context(), PCRS)
                )


def test_changed_pcr_values(lab: Lab) -> None:
    bound = lab.bind(lab.enrol(), context())
    genuine = lab.quote(context())
    with pytest.raises(refusals.WrongDigest):
        verifier.verify_quote(
            dataclasses.replace(genuine, pcrs={**genuine.pcrs, 7: b"\1" * 32}), bound, Expected(context(), PCRS)
        )


@pytest.mark.parametrize("pcrs", [(0, 1, 2), (*PCRS, 8), (8, 9, 10, 11, 12, 13, 14, 15)])
def test_wrong_pcr_selection(lab: Lab, pcrs: tuple[int, ...]) -> None:
    bound = lab.bind(lab.enrol(), context())
    with pytest.raises(refusals.WrongSelection):
        verifier.verify_quote(lab.quote(context(), pcrs), bound, Expected(context(), PCRS))


def test_pcrs_relabelled(lab: Lab) -> None:
    """A genuine quote of PCRs 8 to 15 is presented as a quote of PCRs 0 to 7, and refused."""
    bound = lab.bind(lab.enrol(), context())
    other = lab.quote(context(), range(8, 16))
    relabelled = dataclasses.replace(other, pcrs={pcr - 8: value for pcr, value in other.pcrs.items()})
    with pytest.raises(refusals.WrongSelection):
        verifier.verify_quote(relabelled, bound, Expected(context(), PCRS))


def test_attestation_key_of_another_tpm(lab: Lab, make_tpm: Callable, tmp_path: Path) -> None:
    """With one TPM's endorsement key and another's attestation key, neither TPM can complete the enrolment."""
    other = Lab(make_tpm().tcti, tmp_path / "other-lock")
    mixed = dataclasses.replace(lab.enrol(), attestation=other.enrol().attestation)
    for one in (lab, other):
        with pytest.raises(tpm.DeviceError):
            one.bind(mixed, context())


def test_evidence_of_another_tpm(lab: Lab, make_tpm: Callable, tmp_path: Path) -> None:
    bound = lab.bind(lab.enrol(), context())
    other = Lab(make_tpm().tcti, tmp_path / "other-lock").quote(context())
    with pytest.raises(refusals.UnknownAttestationKey):
        verifier.verify_quote(other, bound, Expected(context(), PCRS))
    with pytest.raises(refusals.WrongSignature):
        verifier.verify_quote(dataclasses.replace(other, key=bound.key.raw), bound, Expected(context(), PCRS))


def test_certificate_of_another_tpm(make_tpm: Callable, factory, other_factory, tmp_path: Path) -> None:
    one = Lab(make_tpm(factory).tcti, tmp_path / "lock").enrol()
    other = Lab(make_tpm(other_factory).tcti, tmp_path / "other-lock").enrol()
    with pytest.raises(refusals.WrongEndorsementCertificate):
        attestation_keys.challenge(
            dataclasses.replace(one, certificate=other.certificate), context(), roots=[], pinned=None, now=time.time()
        )


def test_quote_from_before_a_reset(make_tpm: Callable, tmp_path: Path) -> None:
    device = make_tpm()
    lab = Lab(device.tcti, tmp_path / "lock")
    old = lab.quote(context())
    device.stop()
    device.start()
    bound = lab.bind(lab.enrol(), context())
    now = verifier.verify_quote(lab.quote(context()), bound, Expected(context(), PCRS))
    with pytest.raises(refusals.ClockRolledBack):
        verifier.verify_quote(old, bound, Expected(context(), PCRS, previous=now.clock))


def test_what_a_tpm_signs_besides_quotes(lab: Lab) -> None:
    """A genuine signature by TPM2_GetTime, made with the attestation key, is refused as a quote."""

    def get_time(device: tpm.Device) -> tuple[bytes, bytes]:
        tss = device._tss
        with device.attestation_key() as (handle, _):
            attest, signature = device._esapi.get_time(
                handle,
                tss.TPM2B_DATA(context().qualifying()),
                tss.TPMT_SIG_SCHEME(scheme=tss.constants.TPM2_ALG.NULL),
            )
            return bytes(attest), bytes(signature.marshal())

    bound = lab.bind(lab.enrol(), context())
    attest, signature = lab.run(get_time)
    evidence = Evidence("tpm", bound.key.raw, attest, signature)
    with pytest.raises(refusals.WrongType):
        verifier.verify_quote(evidence, bound, Expected(context(), PCRS))


def test_a_credential_opens_only_beside_its_own_key(lab: Lab) -> None:
    enrolment = lab.enrol()
    key = structures.endorsement(enrolment.endorsement)
    blob, encrypted = credential.make(key, b"\0\x0b" + bytes(32), b"s" * 32)
    with pytest.raises(tpm.DeviceError):
        lab.run(
            lambda device: attester.activate(device, [attester.Credential("EK-RSA2048", blob, encrypted)], context())
        )


def test_tpm2_tools_accept_our_quote(lab: Lab, tmp_path: Path) -> None:
    import subprocess

    from cryptography.hazmat.primitives import serialization

    evidence = lab.quote(context())
    pem = (
        structures.public(evidence.key)
        .key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    for name, content in (("ak.pem", pem), ("msg", evidence.attest), ("sig", evidence.signature)):
        (tmp_path / name).write_bytes(content)
    subprocess.run(
        [
            *("tpm2_checkquote", "-u", "ak.pem", "-m", "msg", "-s", "sig", "-g", "sha256"),
            *("-q", context().qualifying().hex()),
        ],
        cwd=tmp_path,
        check=True,
        stdout=subprocess.DEVNULL,
    )
