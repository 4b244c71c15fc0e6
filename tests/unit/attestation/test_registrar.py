"""The registrar: owners of TPMs, issued certificates, and the log."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from support.attestation.honest_minion import DAY, MASTER, NOW, Minion, enrolled

from netspace.attestation import refusals
from netspace.attestation.endorsement.makers import Makers
from netspace.attestation.evidence import Enrolment, key_fingerprint, parse_enrolment
from netspace.attestation.registrar import audit_log
from netspace.attestation.registrar.host_record import keys_of
from netspace.attestation.registrar.registrar import Registrar
from netspace.attestation.tpm import structures
from netspace.attestation.verifier import ak_certificate, offline
from netspace.errors import NetspaceError, StateError


@pytest.fixture
def minion(fake_tpm) -> Minion:
    return Minion("web1", fake_tpm)


def enroll(registrar: Registrar, minion: Minion, now: float = NOW) -> dict[str, Any]:
    return enrolled(registrar, minion, now)


def events(registrar: Registrar) -> list[tuple[str, Any]]:
    registrar.verify_log()
    found = [json.loads(line) for line in registrar.log.read_bytes().splitlines()]
    return [(one["event"], one["data"].get("code") or one["data"].get("minion")) for one in found]


def test_a_minion_is_bound_and_certified(registrar: Registrar, minion: Minion) -> None:
    record = enroll(registrar, minion)
    assert (record["level"], record["minion"]) == (2, "web1")
    certificate = base64.b64decode(record["certificate"])
    key = structures.public(minion.tpm.ak_public).key()
    lists = [registrar.revocations(NOW)]
    assert ak_certificate.check(certificate, key, registrar.ca.trusted(NOW), lists, NOW) == record["pseudonym"]
    assert b"web1" not in certificate and minion.tpm.ek_public not in certificate
    assert registrar.host("web1") == record and registrar.hosts() == [record]
    assert events(registrar) == [("ca-root", None), ("ca-intermediate", None), ("issued", "web1")]
    assert registrar.status(NOW)["hosts"] == 1


def test_again_it_is_the_same_tpm_under_another_pseudonym(registrar: Registrar, minion: Minion) -> None:
    first, second = enroll(registrar, minion), enroll(registrar, minion, NOW + DAY)
    assert first["ek"] == second["ek"] and first["pseudonym"] != second["pseudonym"]
    assert minion.asked == ["", "EK-ECC256"]
    assert registrar.hosts() == [second]


def test_another_tpm_is_refused_until_the_minion_is_released(registrar: Registrar, minion: Minion) -> None:
    enroll(registrar, minion)
    moved = Minion("web1", type(minion.tpm)())
    with pytest.raises(refusals.EndorsementKeyChanged):
        enroll(registrar, moved)
    assert events(registrar)[-1] == ("refused", "ek-changed")
    registrar.release("web1", NOW)
    assert registrar.host("web1") is None
    assert [event for event, _ in events(registrar)][-2:] == ["revoked", "released"]
    enroll(registrar, moved)


def test_one_tpm_serving_two_minions(registrar: Registrar, minion: Minion) -> None:
    enroll(registrar, minion)
    with pytest.raises(refusals.SharedEndorsementKey, match="bound to web1"):
        enroll(registrar, Minion("web2", minion.tpm))
    assert registrar.host("web2") is None and events(registrar)[-1] == ("refused", "ek-shared")


def test_each_certificate_is_for_a_new_key(registrar: Registrar, minion: Minion) -> None:
    """A second certificate for the same key is refused, because a repeated key would identify the minion."""
    first, second = enroll(registrar, minion), enroll(registrar, minion, NOW + DAY)
    assert first["ak"] != second["ak"] and first["period"] != second["period"]
    minion.tpm.take = lambda period: None
    with pytest.raises(refusals.SharedAttestationKey, match="last certificate"):
        enroll(registrar, minion, NOW + 2 * DAY)
    assert events(registrar)[-1] == ("refused", "ak-shared") and registrar.host("web1") == second


def test_an_attestation_key_that_is_another_minions(registrar: Registrar, minion: Minion) -> None:
    """A minion is refused with another minion's attestation key, also if it presents another endorsement key."""
    enroll(registrar, minion)
    twin = type(minion.tpm)()
    twin.ak, twin.ak_public = minion.tpm.ak, minion.tpm.ak_public
    twin.take = lambda period: None
    with pytest.raises(refusals.SharedAttestationKey, match="belongs to web1"):
        enroll(registrar, Minion("web2", twin))
    enroll(registrar, minion)
    assert enroll(registrar, Minion("web2", twin))["minion"] == "web2", "a key that counts no more is nobody's"
    assert {path.stem for path in (registrar.folder / "owners").iterdir()} == {
        key for one in registrar.hosts() for key in keys_of(one)
    }


def test_an_enrolment_answers_what_was_asked_last(registrar: Registrar, minion: Minion) -> None:
    old = minion.enroll(registrar.request("web1"))
    for wire in (old, {**minion.enroll(registrar.request("web1")), "period": ""}):
        registrar.request("web1")
        with pytest.raises(refusals.Malformed, match="the last request"):
            registrar.begin("web1", wire, MASTER, Makers(), NOW)
    shown = minion.enroll(registrar.request("web1"))
    registrar.begin("web1", shown, MASTER, Makers(), NOW)
    with pytest.raises(refusals.Malformed, match="the last request"):
        registrar.begin("web1", shown, MASTER, Makers(), NOW)


@pytest.mark.parametrize("modulus", [1 << 2047 | 1 << 100, (1 << 2048) - 2])
def test_a_key_that_nothing_can_be_encrypted_for(registrar: Registrar, fake_rsa_tpm: Any, modulus: int) -> None:
    one = Minion("web1", fake_rsa_tpm)
    raw = fake_rsa_tpm.ek_public[:-256] + modulus.to_bytes(256, "big")
    one.enrolment = lambda wire: {**wire, "ek": base64.b64encode(raw).decode()}
    with pytest.raises(refusals.Malformed):
        enroll(registrar, one)
    assert events(registrar)[-1] == ("refused", "malformed")


def test_an_inventory_says_which_tpm_is_whose(registrar: Registrar, minion: Minion, tmp_path: Path) -> None:
    other = Minion("web2", type(minion.tpm)())
    mine, theirs = (structures.public(one.tpm.ek_public).fingerprint for one in (minion, other))
    registrar.listed = tmp_path / "tpms"
    registrar.listed.write_text(f"web1 {mine.upper()} # rack 3\n\nweb2 {theirs}\n")
    for name, tpm in (("web1", other.tpm), ("web2", minion.tpm), ("web3", minion.tpm)):
        with pytest.raises(refusals.UnlistedEndorsementKey):
            enroll(registrar, Minion(name, tpm))
        assert events(registrar)[-1] == ("refused", "ek-inventory")
    assert enroll(registrar, minion)["ek"] == mine and enroll(registrar, other)["ek"] == theirs
    registrar.listed.write_text(f"web2 {theirs}\n")
    with pytest.raises(refusals.UnlistedEndorsementKey, match="does not name web1"):
        enroll(registrar, minion)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("web1\n", "line 1: expected"),
        (f"web1 {'0' * 63}\n", "line 1: expected"),
        (f"web1 {'0' * 64}\nweb1 {'1' * 64}", "line 2: web1 is listed a second time"),
        (f"web1 {'0' * 64}\nweb2 {'0' * 64}", "line 2: 0+ is web1's"),
        ("web1 \udcff\n", "line 1: expected"),
    ],
)
def test_an_inventory_that_is_wrong_enrols_nobody(
    registrar: Registrar, minion: Minion, tmp_path: Path, text: str, problem: str
) -> None:
    registrar.listed = tmp_path / "tpms"
    with pytest.raises(NetspaceError, match="No such file"):
        enroll(registrar, minion)
    registrar.listed.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(NetspaceError, match=problem):
        enroll(registrar, minion)
    assert registrar.hosts() == []


@pytest.mark.parametrize(("taken", "code"), [(59.9, ""), (60.1, "challenge-expired")])
def test_a_credential_is_answered_within_60_s_however_long_the_bus_waits(
    registrar: Registrar, minion: Minion, monkeypatch: pytest.MonkeyPatch, taken: float, code: str
) -> None:
    now = [5000.0]
    monkeypatch.setattr("netspace.attestation.registrar.registrar.time.monotonic", lambda: now[0])

    def late(answer: Any) -> Any:
        now[0] += taken
        return answer

    def slow(wire: Any) -> Any:
        now[0] += 500  # before the credential was made: that costs nothing of its time
        return wire

    minion.answer, minion.enrolment = late, slow
    if not code:
        assert enroll(registrar, minion)["minion"] == "web1"
        return
    with pytest.raises(refusals.ChallengeExpired):
        enroll(registrar, minion)
    assert registrar.host("web1") is None and events(registrar)[-1] == ("refused", code)


@pytest.mark.parametrize("disguise", ["policy", "attributes"])
def test_one_tpm_in_disguise_is_still_one(registrar: Registrar, minion: Minion, disguise: str) -> None:
    """A TPM is recognized by its endorsement key alone, although its public area has other fields.

    An endorsement certificate does not prove the other fields of the public area.
    """
    enroll(registrar, minion)
    genuine = minion.tpm.ek_public
    if disguise == "policy":
        minion.tpm.ek_public = genuine[:8] + b"\0\x20" + b"\7" * 32 + genuine[10:]
    else:
        attributes = int.from_bytes(genuine[4:8], "big") | structures.NO_DA
        minion.tpm.ek_public = genuine[:4] + attributes.to_bytes(4, "big") + genuine[8:]
    assert minion.tpm.ek_public != genuine
    with pytest.raises(refusals.SharedEndorsementKey):
        enroll(registrar, Minion("web2", minion.tpm))


def test_a_coordinate_without_its_zeros_is_the_same_key(fake_tpm: Any) -> None:
    while (x := fake_tpm.ek.public_key().public_numbers().x) >> 248:
        fake_tpm = type(fake_tpm)()  # one of 256 begins with a zero
    whole, cut = fake_tpm.ek_public, x.to_bytes(31, "big")
    short = whole.replace(b"\0\x20\0" + cut, b"\0\x1f" + cut)
    assert short != whole and structures.public(short).fingerprint == structures.public(whole).fingerprint


@pytest.mark.parametrize("meanwhile", ["revoked", "released", "enrolled"])
def test_a_renewal_undoes_nothing_that_was_decided_while_it_waited(
    registrar: Registrar, minion: Minion, meanwhile: str
) -> None:
    """A minion delays its answer until it is revoked, released or renewed; the answer changes nothing."""
    enroll(registrar, minion)

    def late(answer: Any) -> Any:
        if meanwhile == "revoked":
            registrar.revoke("web1", "stolen", NOW + 1)
        elif meanwhile == "released":
            registrar.release("web1", NOW + 1)
        else:
            minion.answer = lambda given: given
            enroll(registrar, minion, NOW + 1)
        return answer

    minion.answer = late
    with pytest.raises(NetspaceError, match="meanwhile; nothing was changed"):
        enroll(registrar, minion, NOW + 2)
    found = registrar.host("web1")
    assert (found is None) == (meanwhile == "released")
    assert found is None or ("revoked" in found) == (meanwhile == "revoked")
    assert found is None or found["enrolled"] <= NOW + 1


def test_of_two_tpms_that_race_to_be_a_minions_first_one_wins(registrar: Registrar, minion: Minion) -> None:
    other = Minion("web1", type(minion.tpm)())

    def late(answer: Any) -> Any:
        enroll(registrar, other)
        return answer

    minion.answer = late
    with pytest.raises(NetspaceError, match="meanwhile"):
        enroll(registrar, minion)
    found = registrar.host("web1")
    assert found is not None and found["ek"] == structures.public(other.tpm.ek_public).fingerprint


def test_a_minion_that_relays_to_another(registrar: Registrar, minion: Minion) -> None:
    """A minion relays the challenge to another's TPM; the answer is bound to the other's id, and refused."""
    relay = Minion("evil", minion.tpm)
    relay.name, named = "web1", "evil"
    with pytest.raises(refusals.WrongActivation):
        enrolled(registrar, relay, NOW, name=named)


def test_a_master_in_between(registrar: Registrar, fake_tpm) -> None:
    """A false master relays between minion and master; the answer is bound to the false master, and refused."""
    with pytest.raises(refusals.WrongActivation):
        enroll(registrar, Minion("web1", fake_tpm, master="cd" * 32))


def test_an_attestation_key_of_another_tpm(registrar: Registrar, minion: Minion) -> None:
    other = type(minion.tpm)()
    minion.enrolment = lambda wire: {**wire, "ak": base64.b64encode(other.ak_public).decode()}
    with pytest.raises((AssertionError, refusals.WrongActivation)):  # the TPM itself refuses to open it
        enroll(registrar, minion)
    assert registrar.hosts() == []


@pytest.mark.parametrize(
    "answer", [None, {}, {"answer": 1}, {"answer": "zz"}, {"answer": "00" * 31}, "00" * 32, {"answer": "00" * 32}]
)
def test_answers_that_prove_nothing(registrar: Registrar, minion: Minion, answer: Any) -> None:
    minion.answer = lambda _: answer
    with pytest.raises(refusals.Refused) as caught:
        enroll(registrar, minion)
    assert caught.value.code in ("malformed", "activation")
    assert registrar.hosts() == []


@pytest.mark.parametrize(
    "change",
    [
        *({"v": 1}, {"v": True}, {"more": 1}, {"template": "x y"}, {"template": 1}, {"ek": 1}, {"ek": "!"}),
        *({"ek": "AA" * 4000}, {"cert": 1}, {"cert": "AA" * 9000}, {"chain": None}, {"chain": ["AA"] * 6}),
        *({"chain": [1]}, {"tpm": []}, {"tpm": {"a": 1}}, {"tpm": {"a": "x" * 65}}, {"tpm": {"a": "\x1b[31m"}}),
        *({"tpm": {str(n): "x" for n in range(17)}}, {"period": None}, {"period": "0" * 31}, {"period": "x" * 32}),
        *(
            {"others": None},
            {"others": [1]},
            {"others": [{"template": "A"}]},
            {"others": [{"template": "a", "ek": ""}]},
        ),
        *({"others": [{"template": "A", "ek": "AA"}] * 9}, {"others": [{"template": "A", "ek": "AA"}]}),
    ],
)
def test_enrolments_that_are_none(registrar: Registrar, minion: Minion, change: dict) -> None:
    minion.enrolment = lambda wire: {**wire, **change}
    with pytest.raises(refusals.Malformed):
        enroll(registrar, minion)
    assert events(registrar)[-1] == ("refused", "malformed")


def test_the_wire_of_an_enrolment_keeps_everything(fake_tpm) -> None:
    whole = Enrolment(
        "EK-ECC256", b"ek", b"cert", b"ak", (b"a", b"b"), {"manufacturer": "X"}, b"p" * 16, (("A", b"o"),)
    )
    assert parse_enrolment(whole.wire()) == whole
    assert parse_enrolment(fake_tpm.enrolment().wire()) == fake_tpm.enrolment()


def test_revocation(registrar: Registrar, minion: Minion) -> None:
    record = enroll(registrar, minion)
    registrar.revoke("web1", "stolen", NOW)
    key, raw = structures.public(minion.tpm.ak_public).key(), base64.b64decode(record["certificate"])
    with pytest.raises(refusals.RevokedAttestationCertificate):
        ak_certificate.check(raw, key, registrar.ca.trusted(NOW), [registrar.revocations(NOW)], NOW)
    again = enroll(registrar, minion)
    key, raw = structures.public(minion.tpm.ak_public).key(), base64.b64decode(again["certificate"])
    assert ak_certificate.check(raw, key, registrar.ca.trusted(NOW), [registrar.revocations(NOW)], NOW)
    with pytest.raises(NetspaceError, match="not enrolled"):
        registrar.revoke("web9", "", NOW)


def test_others_check_a_quote_by_certificate_and_list_and_learn_a_pseudonym(
    registrar: Registrar, minion: Minion
) -> None:
    record = enroll(registrar, minion)
    given = registrar.certificate("web1")
    attest = minion.tpm.attest(b"n" * 32)

    def check(now: float = NOW, ak: bytes = minion.tpm.ak_public, crl: bytes = b"", **changes: str) -> offline.Report:
        parts = {**given, **changes}
        issue = offline.Issue(parts["certificate"].encode(), parts["chain"].encode(), now, crl)
        return offline.verify_quote(attest, minion.tpm.sign(attest), ak, nonce=b"n" * 32, issue=issue)

    report = check(crl=registrar.revocations(NOW))
    (found,) = (one for one in report.checks if one["check"] == "ak-certificate")
    assert report.code == "ok" and record["pseudonym"] in found["detail"] and "web1" not in str(report.result())
    assert {one["check"] for one in check().checks if one["result"] == "unchecked"} >= {"ak-certificate-revoked"}
    assert check(ak=type(minion.tpm)().ak_public).code == "ak-certificate"
    assert check(chain=given["certificate"]).code == "ak-certificate"
    assert check(certificate="x").code == "ak-certificate"
    assert check(now=NOW + 2 * DAY).code == "ak-certificate-expired"
    assert check(now=NOW + DAY / 2, crl=registrar.revocations(NOW - DAY)).code == "ak-certificate-revoked"
    registrar.revoke("web1", "stolen", NOW)
    assert check(crl=registrar.revocations(NOW)).code == "ak-certificate-revoked"


def test_a_log_that_was_changed(registrar: Registrar, minion: Minion) -> None:
    enroll(registrar, minion)
    head = registrar.verify_log()
    raw = registrar.log.read_bytes()
    registrar.log.write_bytes(raw.replace(b"web1", b"web2"))
    with pytest.raises(audit_log.LogBroken):
        registrar.verify_log()
    registrar.log.write_bytes(b"".join(raw.splitlines(keepends=True)[:-1]))
    with pytest.raises(audit_log.LogBroken, match="ends here"):
        registrar.verify_log(head)
    registrar.log.unlink()
    assert registrar.verify_log() == audit_log.Head()
    with pytest.raises(audit_log.LogBroken):
        registrar.verify_log(head)


def test_nothing_of_it_is_readable_by_others(registrar: Registrar, minion: Minion) -> None:
    enroll(registrar, minion)
    registrar.revoke("web1", "", NOW)
    assert registrar.folder.stat().st_mode & 0o777 == 0o700
    for path in registrar.folder.rglob("*"):
        assert path.is_dir() or path.name == "chain.pem" or path.stat().st_mode & 0o077 == 0, path
    assert b"PRIVATE" not in registrar.log.read_bytes()


def test_a_damaged_book_is_to_be_restored_never_removed(registrar: Registrar, minion: Minion) -> None:
    enroll(registrar, minion)
    (binding,) = (registrar.folder / "hosts").iterdir()
    binding.write_text("{")
    for look in (lambda: registrar.host("web1"), lambda: registrar.status(NOW)):
        with pytest.raises(StateError, match="restore it from a backup"):
            look()


@pytest.mark.parametrize("key", ["", "AAAA", "no base64", None])
def test_a_record_without_its_key_is_named(registrar: Registrar, minion: Minion, key: str | None) -> None:
    enroll(registrar, minion)
    (path,) = (registrar.folder / "hosts").iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), "ak": key}))
    with pytest.raises(NetspaceError, match="web1: its record is not that of an enrolled host"):
        enroll(registrar, minion)


def test_names_of_minions_are_no_paths(registrar: Registrar, fake_tpm) -> None:
    enroll(registrar, Minion("../../etc/x", fake_tpm))
    assert registrar.host("../../etc/x") and len(list((registrar.folder / "hosts").iterdir())) == 1


def test_a_masters_name_is_of_its_key_not_of_its_file(fake_tpm) -> None:
    pem = fake_tpm.ek_public_pem()
    assert key_fingerprint(pem) == key_fingerprint(pem.strip()) == key_fingerprint(pem + b"\n\n")
    with pytest.raises(refusals.Malformed):
        key_fingerprint(b"noise")
