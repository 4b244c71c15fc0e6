"""All checks of the verifier, each tested by the attack that it stops."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netspace.attestation import refusals
from netspace.attestation.evidence import Context, Evidence, Measurements, parse
from netspace.attestation.minion import attester, software_key
from netspace.attestation.tpm import structures
from netspace.attestation.tpm.structures import Clock
from netspace.attestation.verifier import attestation_keys, references, verifier
from netspace.attestation.verifier.attestation_keys import Bound
from netspace.attestation.verifier.verifier import Expected, Verified
from netspace.layout import Layout

PCRS = tuple(range(8))
NOW = 1_700_000_000.0
FIXTURES = Path(__file__).parents[2] / "fixtures/eventlogs"


def bind(tpm, context: Context, **changes: object) -> Bound:
    made = attestation_keys.challenge(tpm.enrolment(**changes), context, roots=[], pinned=None, now=NOW)
    answer = context.activation(tpm.activate(made.blob, made.encrypted), made._key.name)
    return made.redeem(answer, NOW)


def refused(kind: type[Exception], tpm, context: Context, evidence: Evidence, **expected: object) -> None:
    with pytest.raises(kind):
        verifier.verify_quote(evidence, bind(tpm, context), Expected(context, PCRS, **expected))


def test_genuine(fake_tpm, fake_rsa_tpm, context: Context) -> None:
    for tpm in (fake_tpm, fake_rsa_tpm):
        verified = verifier.verify_quote(tpm.evidence(context), bind(tpm, context), Expected(context, PCRS))
        assert verified.level == 2
        assert verified.clock == Clock(1000, 5, 2, True)
        assert "certificate" in verified.reason and "roots" in verified.remedy


def test_magic(fake_tpm, context: Context) -> None:
    refused(refusals.WrongMagic, fake_tpm, context, fake_tpm.evidence(context, magic=0xFF544348))


@pytest.mark.parametrize("handle", [0x40000001, 0x40000007, 0x4000000C])
def test_a_key_of_another_hierarchy_is_refused(fake_tpm, context: Context, handle: int) -> None:
    """A quote by a key of another hierarchy is refused, since its TPM obfuscates the counters and hides a reset."""
    name = b"\0\x0b" + hashlib.sha256(fake_tpm.ak_public).digest()
    for above in (struct.pack(">I", handle), b"\0\x0b" + bytes(32)):
        signer = b"\0\x0b" + hashlib.sha256(above + name).digest()
        refused(refusals.WrongHierarchy, fake_tpm, context, fake_tpm.evidence(context, signer=signer))
    refused(refusals.WrongHierarchy, fake_tpm, context, fake_tpm.evidence(context, signer=b"signer"))


def test_type(fake_tpm, context: Context) -> None:
    refused(refusals.WrongType, fake_tpm, context, fake_tpm.evidence(context, kind=0x8017))


@pytest.mark.parametrize("scheme", [(0x0018, 0x0004), (0x0018, 0x000C)])
def test_scheme(fake_tpm, context: Context, scheme: tuple[int, int]) -> None:
    genuine = fake_tpm.evidence(context)
    swapped = struct.pack(">HH", *scheme) + genuine.signature[4:]
    refused(refusals.WrongScheme, fake_tpm, context, dataclasses.replace(genuine, signature=swapped))


def test_signature_scheme_of_another_kind_of_key(fake_tpm, context: Context) -> None:
    swapped = struct.pack(">HHH", 0x0014, 0x000B, 256) + bytes(256)
    refused(refusals.WrongScheme, fake_tpm, context, dataclasses.replace(fake_tpm.evidence(context), signature=swapped))


def test_a_key_for_sha1(fake_tpm, context: Context) -> None:
    """A key with SHA-1 is refused, even if both key and signature use it."""
    public = fake_tpm.ak_public
    fake_tpm.ak_public = public.replace(struct.pack(">HH", 0x0018, 0x000B), struct.pack(">HH", 0x0018, 0x0004))
    assert fake_tpm.ak_public != public
    genuine = fake_tpm.evidence(context)
    weak = dataclasses.replace(genuine, signature=struct.pack(">HH", 0x0018, 0x0004) + genuine.signature[4:])
    refused(refusals.WrongScheme, fake_tpm, context, weak)


def test_signature(fake_tpm, context: Context) -> None:
    attest = fake_tpm.attest(context.qualifying())
    other = fake_tpm.sign(attest + b"x")
    refused(
        refusals.WrongSignature, fake_tpm, context, Evidence("tpm", fake_tpm.ak_public, attest, other, fake_tpm.pcrs)
    )


def test_a_signature_over_attest_with_a_byte_too_many(fake_tpm, context: Context) -> None:
    attest = fake_tpm.attest(context.qualifying()) + b"\0"
    evidence = Evidence("tpm", fake_tpm.ak_public, attest, fake_tpm.sign(attest), fake_tpm.pcrs)
    refused(refusals.Malformed, fake_tpm, context, evidence)


def test_replayed_nonce(fake_tpm, context: Context) -> None:
    old = fake_tpm.evidence(dataclasses.replace(context, nonce=b"o" * 32))
    refused(refusals.WrongQualifyingData, fake_tpm, context, old)


def test_fields_that_flow_into_each_other_are_told_apart() -> None:
    nonce = bytes(32)
    assert Context("ab", "c", "d", nonce).qualifying() != Context("a", "bc", "d", nonce).qualifying()
    secret = bytes(32)
    assert Context("v", "h", "s", nonce).activation(secret, b"n") != Context("v", "hs", "", nonce).activation(
        secret, b"n"
    )


def test_another_bank(fake_tpm, context: Context) -> None:
    refused(refusals.WrongSelection, fake_tpm, context, fake_tpm.evidence(context, bank=0x0004))


def test_two_banks(fake_tpm, context: Context) -> None:
    selections = (
        struct.pack(">I", 2) + struct.pack(">HB", 0x000B, 3) + b"\xff\0\0" + struct.pack(">HB", 4, 3) + b"\1\0\0"
    )
    refused(refusals.WrongSelection, fake_tpm, context, fake_tpm.evidence(context, selections=selections))


def test_the_same_bank_twice(fake_tpm, context: Context) -> None:
    selections = struct.pack(">I", 2) + (struct.pack(">HB", 0x000B, 3) + b"\xff\0\0") * 2
    refused(refusals.WrongSelection, fake_tpm, context, fake_tpm.evidence(context, selections=selections))


def test_no_pcr_at_all(fake_tpm, context: Context) -> None:
    evidence = fake_tpm.evidence(context, selections=struct.pack(">I", 0), digest=b"")
    refused(refusals.WrongSelection, fake_tpm, context, evidence)


def test_more_values_than_were_quoted(fake_tpm, context: Context) -> None:
    evidence = dataclasses.replace(fake_tpm.evidence(context), pcrs=fake_tpm.pcrs)
    refused(refusals.WrongSelection, fake_tpm, context, evidence)


def test_digest(fake_tpm, context: Context) -> None:
    genuine = fake_tpm.evidence(context)
    refused(refusals.WrongDigest, fake_tpm, context, dataclasses.replace(genuine, pcrs={**genuine.pcrs, 0: bytes(32)}))


@pytest.mark.parametrize(
    ("previous", "accepted"),
    [
        (Clock(1000, 5, 2, True), True),
        (Clock(999, 5, 1, True), True),
        (Clock(5000, 4, 9, True), True),  # a reboot after suspends: restartCount and clock start again
        (Clock(0, 6, 0, True), False),
        (Clock(1000, 5, 3, True), False),
        (Clock(1001, 5, 2, True), False),
    ],
)
def test_clock(fake_tpm, context: Context, previous: Clock, accepted: bool) -> None:
    evidence, bound = fake_tpm.evidence(context), bind(fake_tpm, context)
    if accepted:
        verifier.verify_quote(evidence, bound, Expected(context, PCRS, previous))
    else:
        refused(refusals.ClockRolledBack, fake_tpm, context, evidence, previous=previous)


@pytest.mark.parametrize(
    "attributes",
    [
        0x00050072 & ~(1 << 16),  # not restricted: it signs whatever it is given
        0x00050072 & ~(1 << 1),  # not fixedTPM
        0x00050072 & ~(1 << 4),  # not fixedParent
        0x00050072 & ~(1 << 5),  # made elsewhere
        0x00050072 & ~(1 << 18),  # doesn't sign
        0x00050072 | 1 << 17,  # decrypts
    ],
)
def test_attestation_key_attributes(fake_tpm, context: Context, attributes: int) -> None:
    raw = fake_tpm.ak_public[:4] + struct.pack(">I", attributes) + fake_tpm.ak_public[8:]
    with pytest.raises(refusals.WrongAttestationKey):
        bind(fake_tpm, context, attestation=raw)


@pytest.mark.parametrize("bit", [1, 4, 5, 7, 16, 17])
def test_endorsement_key_attributes(fake_tpm, context: Context, bit: int) -> None:
    attributes = 0x000300B2 & ~(1 << bit)
    raw = fake_tpm.ek_public[:4] + struct.pack(">I", attributes) + fake_tpm.ek_public[8:]
    with pytest.raises(refusals.WrongEndorsementKey):
        bind(fake_tpm, context, endorsement=raw)


def test_pinned(fake_tpm, fake_rsa_tpm, context: Context) -> None:
    pinned = structures.public(fake_tpm.ek_public).fingerprint
    attestation_keys.challenge(fake_tpm.enrolment(), context, roots=[], pinned=pinned, now=NOW)
    with pytest.raises(refusals.EndorsementKeyChanged):
        attestation_keys.challenge(fake_rsa_tpm.enrolment(), context, roots=[], pinned=pinned, now=NOW)


def test_an_answer_counts_once_and_in_time(fake_tpm, context: Context) -> None:
    made = attestation_keys.challenge(fake_tpm.enrolment(), context, roots=[], pinned=None, now=NOW)
    answer = context.activation(fake_tpm.activate(made.blob, made.encrypted), made._key.name)
    made.redeem(answer, NOW + 60)
    with pytest.raises(refusals.ChallengeExpired):
        made.redeem(answer, NOW)
    made = attestation_keys.challenge(fake_tpm.enrolment(), context, roots=[], pinned=None, now=NOW)
    answer = context.activation(fake_tpm.activate(made.blob, made.encrypted), made._key.name)
    with pytest.raises(refusals.ChallengeExpired):
        made.redeem(answer, NOW + 61)


def test_a_guessed_answer_spoils_the_challenge(fake_tpm, context: Context) -> None:
    made = attestation_keys.challenge(fake_tpm.enrolment(), context, roots=[], pinned=None, now=NOW)
    with pytest.raises(refusals.WrongActivation):
        made.redeem(bytes(32), NOW)
    answer = context.activation(fake_tpm.activate(made.blob, made.encrypted), made._key.name)
    with pytest.raises(refusals.ChallengeExpired):
        made.redeem(answer, NOW)


def test_an_answer_for_another_session(fake_tpm, context: Context) -> None:
    made = attestation_keys.challenge(fake_tpm.enrolment(), context, roots=[], pinned=None, now=NOW)
    secret = fake_tpm.activate(made.blob, made.encrypted)
    with pytest.raises(refusals.WrongActivation):
        made.redeem(dataclasses.replace(context, session="other").activation(secret, made._key.name), NOW)


def test_only_verification_makes_its_values(fake_tpm, context: Context) -> None:
    bound = bind(fake_tpm, context)
    with pytest.raises(TypeError):
        Bound(bound.key, bound.endorsement, "EK-ECC256", 3, "", object())
    with pytest.raises(TypeError):
        Verified(5, "", "", "", None, {}, object())


def test_software_evidence_where_a_tpm_is_expected(fake_tpm, context: Context) -> None:
    evidence = dataclasses.replace(fake_tpm.evidence(context), kind="software")
    refused(refusals.UnknownAttestationKey, fake_tpm, context, evidence)


@pytest.mark.parametrize(
    "claim",
    [
        {"pcrs": {0: bytes(32)}},
        {"boot_log": b""},
        {"known_log": "ab" * 32},
        {"systemd_log": b""},
        {"ima": Measurements(b"", b"", bytes(32), 0, b"")},
    ],
    ids=lambda claim: next(iter(claim)),
)
def test_a_software_key_proves_nothing_of_the_boot(tmp_path: Path, context: Context, claim: dict[str, object]) -> None:
    made = attester.by_key(software_key.load(Layout(root=tmp_path)), context)
    assert verifier.verify_software(made, made.key, context).level == 1
    with pytest.raises(refusals.Malformed, match="must have neither"):
        verifier.verify_software(dataclasses.replace(made, **claim), made.key, context)


@pytest.fixture
def booted(fake_tpm):
    """The fake TPM after a real boot, and the log of this boot."""
    import re

    text = (FIXTURES / "uki/tpm2_pcrread_sha256.txt").read_text()
    fake_tpm.pcrs = {int(p): bytes.fromhex(v) for p, v in re.findall(r"(\d+)\s*: 0x([0-9A-F]+)", text)}
    return fake_tpm, (FIXTURES / "uki/binary_bios_measurements").read_bytes()


@pytest.mark.parametrize(
    ("log", "known", "level", "reason"),
    [
        ("whole", "all", 4, "IMA"),
        ("whole", "none", 3, "not among the references"),
        ("whole", None, 3, "no references"),
        ("missing", "all", 3, "no boot log"),
        ("cut", "all", 3, "log-malformed"),
        ("other", "all", 3, "log-mismatch"),
    ],
)
def test_boot_log_and_references(
    booted, context: Context, log: str, known: str | None, level: int, reason: str
) -> None:
    tpm, raw = booted
    other = (FIXTURES / "shim-grub/binary_bios_measurements").read_bytes()
    evidence = dataclasses.replace(
        tpm.evidence(context), boot_log={"whole": raw, "missing": None, "cut": raw[:-1], "other": other}[log]
    )
    references = {"all": {pcr: [tpm.pcrs[pcr]] for pcr in PCRS}, "none": {}, None: None}[known]
    bound = dataclasses.replace(bind(tpm, context), level=3)
    verified = verifier.verify_quote(evidence, bound, Expected(context, PCRS, None, references))
    assert verified.level == level and reason in verified.reason


def test_references_do_not_help_a_tpm_without_a_chain(booted, context: Context) -> None:
    tpm, raw = booted
    evidence = dataclasses.replace(tpm.evidence(context), boot_log=raw)
    references = {pcr: [tpm.pcrs[pcr]] for pcr in PCRS}
    assert verifier.verify_quote(evidence, bind(tpm, context), Expected(context, PCRS, None, references)).level == 2


@pytest.mark.parametrize(
    "data",
    [
        *([], {}, {"sha1": {}}, {"sha256": []}, {"sha256": {"x": []}}, {"sha256": {"24": []}}),
        *({"sha256": {"0": ["00"]}}, {"sha256": {"0": [1]}}, {"sha256": {"0": None}}, {"sha256": {}, "sha1": {}}),
    ],
)
def test_references_that_are_none(data: object) -> None:
    with pytest.raises(refusals.Malformed):
        references.parse(data)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_no_mutation_of_evidence_is_accepted(data: st.DataObject, fake_tpm) -> None:
    context = Context("verifier", "host", "session", bytes(range(32)))
    genuine = fake_tpm.evidence(context)
    field = data.draw(st.sampled_from(["attest", "signature", "key"]))
    raw = bytearray(getattr(genuine, field))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    if bytes(raw) == getattr(genuine, field):
        return
    forged = dataclasses.replace(genuine, **{field: bytes(raw)})
    bound = bind(fake_tpm, context)
    with pytest.raises(refusals.Refused):
        verifier.verify_quote(forged, bound, Expected(context, PCRS))


def test_the_wire_keeps_everything(fake_tpm, context: Context) -> None:
    measurements = Measurements(b"attest", b"sig", bytes(32), 7, b"lines")
    evidence = dataclasses.replace(fake_tpm.evidence(context), boot_log=b"log", systemd_log=b"more", ima=measurements)
    assert parse(evidence.wire()) == evidence
    for key, value in (("first", -1), ("first", True), ("lines", 1), ("value", "00"), ("more", 1)):
        wire = evidence.wire()
        wire["ima"][key] = value
        with pytest.raises(refusals.Malformed):
            parse(wire)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_wire_is_refused_or_read(data: st.DataObject, fake_tpm) -> None:
    context = Context("verifier", "host", "session", bytes(range(32)))
    wire = fake_tpm.evidence(context).wire()
    key = data.draw(st.sampled_from([*sorted(wire), "extra"]))
    junk = st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=5,
    )
    wire[key] = data.draw(junk)
    try:
        parse(wire)
    except refusals.Malformed:
        return
    assert key in ("key", "attest", "sig", "pcrs", "bootlog", "systemdlog", "ima", "kind", "v", "env")
