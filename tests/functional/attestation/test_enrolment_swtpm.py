"""Enrolment of real (software) TPMs by a real registrar: bindings, refusals, and the content of certificates."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from support.attestation.software_tpm import Factory

from netspace.attestation import refusals, result
from netspace.attestation.endorsement import makers
from netspace.attestation.endorsement.makers import Makers
from netspace.attestation.evidence import Context, parse
from netspace.attestation.minion import attester
from netspace.attestation.reconciler import Attestations
from netspace.attestation.registrar.registrar import Registrar
from netspace.attestation.tpm import device as tpm
from netspace.attestation.tpm import structures
from netspace.attestation.verifier import verifier
from netspace.layout import Layout
from netspace.spec.types import Attestation

DAY = 86400.0
PCRS = (0, 1, 7)
RIGHTS = "ppwrite|ppread|ownerread|authread|no_da|platformcreate"


class Minion:
    """A minion that answers with the library's own attester."""

    def __init__(self, name: str, tcti: str, lock: Path) -> None:
        self.name, self.tcti, self.lock = name, tcti, lock

    def run(self, work: Callable[[tpm.Device], Any]) -> Any:
        return tpm.run(self.tcti, work, lock=self.lock)

    def enrol(
        self, registrar: Registrar, now: float, trusted: Makers | None = None, template: str = ""
    ) -> dict[str, Any]:
        asked = registrar.request(self.name)
        period = bytes.fromhex(asked["period"])

        def work(device: tpm.Device) -> dict[str, Any]:
            shown = attester.enrol(device, template or asked["template"] or None, period, others=asked["others"])
            pending = registrar.begin(self.name, shown.wire(), "master", trusted or Makers(), now)
            made = pending.challenge
            others = zip((one for one, _ in shown.others), made.others, strict=True)
            opened = [attester.Credential(shown.template, made.blob, made.encrypted)]
            opened += [attester.Credential(other, *pair) for other, pair in others]
            answer = attester.activate(device, opened, pending.context, period)
            return registrar.finish(pending, {"answer": answer.hex()}, now)

        return self.run(work)

    def quote(self, context: Context, period: str) -> Any:
        made = self.run(lambda device: attester.by_tpm(device, context, PCRS, period=bytes.fromhex(period)))
        return parse(made.wire())


@pytest.fixture
def registrar(tmp_path: Path) -> Registrar:
    made = Registrar(tmp_path / "master")
    made.ca.init(time.time() - DAY)
    return made


@pytest.fixture
def device(make_tpm: Callable, factory: Factory) -> Any:
    return make_tpm(factory)


@pytest.fixture
def minion(device: Any, tmp_path: Path) -> Minion:
    return Minion("web1", device.tcti, tmp_path / "lock")


def certificate(registrar: Registrar, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(registrar.certificate(name)["certificate"].encode())


def spki(found: x509.Certificate) -> bytes:
    return found.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def test_two_certificates_of_one_host_share_no_more_than_those_of_two(
    registrar: Registrar, minion: Minion, make_tpm: Callable, tmp_path: Path
) -> None:
    now = time.time()
    records = [minion.enrol(registrar, now)]
    found = [certificate(registrar, "web1")]
    records.append(minion.enrol(registrar, now + 0.8 * DAY))
    found.append(certificate(registrar, "web1"))
    other = Minion("web2", make_tpm().tcti, tmp_path / "other-lock")
    other.enrol(registrar, now)
    found.append(certificate(registrar, "web2"))
    assert records[0]["ek"] == records[1]["ek"], "the registrar knows that it is one machine"
    assert len({spki(one) for one in found}) == len({one.serial_number for one in found}) == 3
    assert len({one.subject.rfc4514_string() for one in found}) == 3
    # All else is the same for every host of this CA, down to the second at which it begins.
    assert len({tuple((one.oid.dotted_string, repr(one.value)) for one in each.extensions) for each in found}) == 1
    assert found[0].issuer == found[1].issuer == found[2].issuer
    assert found[0].not_valid_before_utc == found[2].not_valid_before_utc
    assert {one.not_valid_after_utc.minute for one in found} == {one.not_valid_after_utc.second for one in found} == {0}


def test_a_host_finds_each_periods_key_again_after_a_restart(registrar: Registrar, minion: Minion, device: Any) -> None:
    now = time.time()
    context = Context("master", "web1", "session", bytes(32))
    records = [minion.enrol(registrar, now), minion.enrol(registrar, now)]
    device.stop()
    device.start()
    certified = [registrar.certified(record, now) for record in records]
    assert certified[0].pseudonym != certified[1].pseudonym
    for key, record in zip(certified, records, strict=True):
        evidence = minion.quote(context, record["period"])
        assert verifier.verify_quote(evidence, key, verifier.Expected(context, PCRS)).level == 2
    with pytest.raises(refusals.UnknownAttestationKey):
        last = minion.quote(context, records[1]["period"])
        verifier.verify_quote(last, certified[0], verifier.Expected(context, PCRS))


@pytest.mark.parametrize(("first", "second"), [("EK-ECC256", "EK-RSA2048"), ("EK-RSA2048", "EK-HIGH-ECC384")])
def test_one_tpm_is_one_minions_by_whichever_of_its_keys(
    registrar: Registrar, minion: Minion, first: str, second: str
) -> None:
    record = minion.enrol(registrar, time.time(), template=first)
    assert len(record["others"]) == 2
    other = Minion("web2", minion.tcti, minion.lock)
    with pytest.raises(refusals.SharedEndorsementKey, match="bound to web1"):
        other.enrol(registrar, time.time(), template=second)
    # What was claimed at first stays claimed when a renewal shows less.
    again = minion.enrol(registrar, time.time())
    assert again["others"] == record["others"]
    registrar.release("web1", time.time())
    assert other.enrol(registrar, time.time(), template=second)["minion"] == "web2"


def put_chain(device: Any, chain: bytes, folder: Path, parts: int) -> None:
    """Put certificates into the NV indices from 0x01c00100 on, as makers do."""
    size = -(-len(chain) // parts)
    for number in range(parts):
        for start in range(0, size, 512):
            part = chain[number * size : (number + 1) * size][start : start + 512]
            if start == 0:
                length = len(chain[number * size : (number + 1) * size])
                define = ["tpm2_nvdefine", hex(0x01C00100 + number), "-C", "p", "-s", str(length), "-a", RIGHTS]
                subprocess.run([*define, "-T", device.tcti], check=True, stdout=subprocess.DEVNULL)
            (folder / "part").write_bytes(part)
            write = ["tpm2_nvwrite", hex(0x01C00100 + number), "-C", "p", "-i", str(folder / "part")]
            subprocess.run([*write, "--offset", str(start), "-T", device.tcti], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(("parts", "padding"), [(1, b""), (2, b""), (1, b"\xff" * 100)])
def test_a_chain_in_the_tpm_leads_to_the_makers_root(
    registrar: Registrar, minion: Minion, device: Any, factory: Factory, tmp_path: Path, parts: int, padding: bytes
) -> None:
    roots = tmp_path / "roots"
    roots.mkdir()
    (roots / "root.pem").write_bytes((factory.roots / "root.pem").read_bytes())
    trusted = makers.read(str(roots))
    assert minion.enrol(registrar, time.time(), trusted)["level"] == 2, "the intermediate is nowhere"
    issuer = x509.load_pem_x509_certificate((factory.roots / "issuer.pem").read_bytes())
    put_chain(device, issuer.public_bytes(serialization.Encoding.DER) + padding, tmp_path, parts)
    assert minion.enrol(registrar, time.time(), trusted)["level"] == 3


def test_garbage_in_the_chains_indices_is_no_chain(
    registrar: Registrar, minion: Minion, device: Any, factory: Factory, tmp_path: Path
) -> None:
    put_chain(device, b"\x30\x82\xff\xff" + bytes(60), tmp_path, 1)
    assert minion.run(lambda one: one.chain(8)) == ()
    assert minion.enrol(registrar, time.time(), makers.read(str(factory.roots)))["level"] == 3


def test_a_chain_that_may_not_be_read_stops_no_enrolment(
    registrar: Registrar, minion: Minion, device: Any, factory: Factory
) -> None:
    for index in ("0x01c00100", "0x01c0001c"):
        define = ["tpm2_nvdefine", index, "-C", "p", "-s", "16", "-a", "ppwrite|ppread|platformcreate"]
        subprocess.run([*define, "-T", device.tcti], check=True, stdout=subprocess.DEVNULL)
    assert minion.enrol(registrar, time.time(), makers.read(str(factory.roots)))["level"] == 3


def made_by(factory: Factory, public: bytes) -> bytes:
    """Return an endorsement key's certificate (PEM) that its maker publishes instead of storing it in the TPM."""
    return factory.certify(structures.public(public).key()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def handed(make_tpm: Callable, factory: Factory, tmp_path: Path) -> tuple[Minion, Path]:
    """A TPM without a certificate, as AMD makes them, and a folder of roots with the certificate of the TPM's maker."""
    minion = Minion("web1", make_tpm().tcti, tmp_path / "lock")
    roots = tmp_path / "roots"
    (roots / "ek").mkdir(parents=True)
    (roots / "root.pem").write_bytes((factory.roots / "root.pem").read_bytes())
    return minion, roots


@pytest.mark.parametrize("suffix", [".pem", ".der"])
def test_a_certificate_that_is_handed_in_by_file_gives_l3(
    registrar: Registrar, handed: tuple[Minion, Path], factory: Factory, suffix: str
) -> None:
    minion, roots = handed
    before = minion.enrol(registrar, time.time(), makers.read(str(roots)))
    assert before["level"] == 2 and "no endorsement certificate" in before["reason"]
    public = minion.run(lambda device: device.endorsement(before["template"]).public)
    pem = made_by(factory, public) + (factory.roots / "issuer.pem").read_bytes()
    if suffix == ".der":
        loaded = x509.load_pem_x509_certificates(pem)
        pem = b"".join(one.public_bytes(serialization.Encoding.DER) for one in loaded)
    path = roots / f"ek/{before['ek']}{suffix}"
    path.write_bytes(pem)
    assert minion.enrol(registrar, time.time(), makers.read(str(roots)))["level"] == 3
    other = made_by(factory, minion.run(lambda device: device.endorsement("EK-RSA2048").public))
    path.write_bytes(other)
    with pytest.raises(refusals.WrongEndorsementCertificate):
        minion.enrol(registrar, time.time(), makers.read(str(roots)))


def test_a_host_that_judges_itself_takes_a_certificate_by_file(
    layout: Layout, handed: tuple[Minion, Path], factory: Factory
) -> None:
    minion, roots = handed
    kind = Attestations(layout)

    def level() -> int:
        desired = Attestation(tpm=minion.tcti, roots=str(roots))
        outcomes = kind.apply(kind.plan(desired, kind.observe()).steps)
        assert not any(outcome.error for outcome in outcomes)
        return result.trust(layout).level

    assert level() == 2
    public = minion.run(lambda device: device.endorsement("EK-ECC256").public)
    found = structures.public(public).fingerprint
    (roots / f"ek/{found}.crt").write_bytes(made_by(factory, public) + (factory.roots / "issuer.pem").read_bytes())
    assert level() == 3


def test_a_relayed_tpm_is_not_in_the_inventory(
    registrar: Registrar, minion: Minion, make_tpm: Callable, factory: Factory, tmp_path: Path
) -> None:
    """The registrar refuses web1 with a third machine's TPM, and web2 with web1's TPM; web1 with its own gets L3."""
    endorsement = minion.run(lambda device: structures.public(device.endorsement().public).fingerprint)
    registrar.listed = tmp_path / "tpms"
    registrar.listed.write_text(f"# racked by hand\nweb1 {endorsement}\n")
    relayed = Minion("web1", make_tpm().tcti, tmp_path / "other-lock")
    with pytest.raises(refusals.UnlistedEndorsementKey, match="nobody's"):
        relayed.enrol(registrar, time.time())
    with pytest.raises(refusals.UnlistedEndorsementKey, match="does not name web2"):
        Minion("web2", minion.tcti, minion.lock).enrol(registrar, time.time())
    assert minion.enrol(registrar, time.time(), makers.read(str(factory.roots)))["level"] == 3
