"""The Privacy CA and its root: renewal, a root on another machine, and the use of the keys."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from support.attestation.honest_minion import DAY, MASTER, NOW, Minion, enrolled

from netspace.attestation.endorsement.makers import Makers
from netspace.attestation.fleet import rounds
from netspace.attestation.fleet.calls import Again, Answer
from netspace.attestation.registrar import privacy_ca
from netspace.attestation.registrar.registrar import Registrar
from netspace.attestation.tpm import structures
from netspace.attestation.verifier import ak_certificate
from netspace.errors import NetspaceError


@pytest.fixture
def minion(fake_tpm) -> Minion:
    return Minion("web1", fake_tpm)


def test_a_renewed_ca_leaves_the_old_certificates_good(registrar: Registrar, minion: Minion) -> None:
    record = enrolled(registrar, minion, NOW)
    registrar.ca.renew(NOW + 1)
    assert registrar.status(NOW)["retired"] == 1 and len(registrar.ca.trusted(NOW)) == 2
    key, raw = structures.public(minion.tpm.ak_public).key(), base64.b64decode(record["certificate"])
    assert ak_certificate.check(raw, key, registrar.ca.trusted(NOW), None, NOW) == record["pseudonym"]
    assert len(registrar.ca.trusted(NOW + 400 * DAY)) == 1
    with pytest.raises(NetspaceError, match="has a CA"):
        registrar.ca.init(NOW)


def test_a_root_elsewhere(tmp_path: Path, minion: Minion) -> None:
    from cryptography.hazmat.primitives import serialization

    registrar = Registrar(tmp_path / "master")
    with pytest.raises(NetspaceError, match="ca_init"):
        enrolled(registrar, minion, NOW)
    asked = registrar.ca.init(NOW, here=False)
    assert asked["requested"] and not asked["root_here"] and asked["ca"] is None
    assert (tmp_path / "master/requested.pem").stat().st_mode & 0o777 == 0o600
    root = privacy_ca.root("Root elsewhere", NOW)
    pem = root.certificate.public_bytes(serialization.Encoding.PEM)
    certificate = privacy_ca.sign_request(root, asked["request"].encode(), NOW)
    with pytest.raises(NetspaceError, match="not by this root"):
        other = privacy_ca.root("Root elsewhere", NOW).certificate.public_bytes(serialization.Encoding.PEM)
        registrar.ca.adopt(certificate, other, NOW)
    found = registrar.ca.adopt(certificate, pem, NOW)
    assert not found["requested"] and found["ca"] == "CN=netspace Privacy CA"
    assert enrolled(registrar, minion, NOW)["level"] == 2
    with pytest.raises(NetspaceError, match="no request is waiting"):
        registrar.ca.adopt(certificate, pem, NOW)


def test_a_hosts_own_refusal_to_enrol_is_waited_for_no_longer(registrar: Registrar) -> None:
    def refused(shown: dict[str, object]) -> object:
        work = rounds.enrolled(registrar, "web1", lambda: begun.append, None)  # type: ignore[arg-type, return-value]
        asked = next(work).value  # type: ignore[union-attr]
        return work.send(Answer({key: value or asked["period"] for key, value in shown.items()}))

    begun: list[object] = []
    with pytest.raises(NetspaceError, match="web1: attestation:tpm names no TPM"):
        refused({"error": "attestation:tpm names no TPM", "period": ""})
    assert isinstance(refused({"error": "of another call", "period": "00" * 16}), Again)
    assert isinstance(refused({"error": "of no call"}), Again) and begun == []


def test_the_cas_key_is_opened_by_what_signs_alone(
    registrar: Registrar, minion: Minion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CA's key is opened only to sign at the end of an enrolment, because opening takes a second."""
    opened: list[Path] = []
    load = privacy_ca.load
    monkeypatch.setattr(privacy_ca, "load", lambda folder, module: opened.append(folder) or load(folder, module))
    pending = registrar.begin("web1", minion.enroll(registrar.request("web1")), MASTER, Makers(), NOW)
    assert opened == []
    registrar.finish(pending, minion.activate(**pending.wire()), NOW)
    assert opened == [registrar.folder / "ca"]
