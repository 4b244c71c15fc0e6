"""Levels of measurement lists on good boots, and the finding for each deviation. Each test is a threat or a mistake."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from support.attestation import boot_logs
from support.attestation.boot_forge import PCRS
from support.attestation.judged_host import (
    CONTENT,
    Host,
    add,
    line,
    pem,
    signature,
    whole,
)

from netspace.attestation import refusals
from netspace.attestation.logs import ima
from netspace.attestation.policy import policy
from netspace.attestation.verifier import appraisal, verifier
from netspace.attestation.verifier.verifier import Expected


def test_a_list_that_the_policy_allows_gives_l5(either: Host) -> None:
    found = either.appraise(whole(either), first=0)
    assert (found.level, found.code, found.remedy) == (5, "ok", ""), found
    assert found.ima is not None and found.ima.value == either.tpm.pcrs[10] and found.ima.refused is None


def test_without_a_list(host: Host) -> None:
    found = host.appraise(whole(host))
    assert (found.level, found.code, found.ima) == (4, "ima-none", None)


def test_increments_continue_and_lines_ahead_wait(host: Host) -> None:
    rules = whole(host)
    values = list(ima.replay(ima.parse(host.lines)))
    host.tpm.pcrs[10] = values[199]
    first = host.appraise(rules, first=0)
    assert first.level == 5 and first.ima is not None and first.ima.lines == 200
    host.tpm.pcrs[10] = values[299]
    second = host.appraise(rules, first=200, start=first.ima)
    assert second.level == 5 and second.ima is not None and second.ima.lines == 300
    third = host.appraise(rules, first=300, start=second.ima)  # nothing happened since
    assert third.level == 5 and third.ima == second.ima
    again = host.appraise(rules, first=0, start=second.ima)
    assert again.level == 5 and again.ima == second.ima
    assert appraisal.ask_from(policy.parse(rules), second.ima) == 300
    assert appraisal.ask_from(policy.parse({**rules, "version": 2}), second.ima) == 0
    assert appraisal.ask_from(policy.parse(rules), None) == 0


@pytest.mark.parametrize("change", ["another first line", "another boot", "another policy", "no state"])
def test_lines_that_do_not_continue(host: Host, change: str) -> None:
    rules = whole(host)
    values = list(ima.replay(ima.parse(host.lines)))
    host.tpm.pcrs[10] = values[199]
    start = host.appraise(rules, first=0).ima
    host.tpm.pcrs[10] = values[299]
    first = 200
    if change == "another first line":
        first = 199
    elif change == "another boot":
        host.tpm.clock = (1000, 6, 0, 1)
    elif change == "another policy":
        rules = {**rules, "version": 2}
    else:
        start = None
    assert host.appraise(rules, first=first, start=start).code == "ima-gap"


def test_a_program_that_is_not_allowed(host: Host) -> None:
    rules = whole(host)
    del rules["ima"]["files"]["/bin/busybox"]
    found = host.appraise(rules, first=0)
    assert (found.level, found.code) == (4, "ima-file")
    assert "line 2" in found.reason and "/bin/busybox" in found.reason and found.remedy


def test_what_was_run_once_is_not_forgotten_by_the_next_increment(host: Host) -> None:
    rules = whole(host)
    del rules["ima"]["files"]["/bin/busybox"]
    values = list(ima.replay(ima.parse(host.lines)))
    host.tpm.pcrs[10] = values[199]
    first = host.appraise(rules, first=0)
    assert first.ima is not None and first.ima.refused is not None
    host.tpm.pcrs[10] = values[299]
    second = host.appraise(rules, first=200, start=first.ima)
    assert (second.level, second.code) == (4, "ima-file") and "/bin/busybox" in second.reason


def test_an_allowed_program_with_other_content(host: Host) -> None:
    rules = whole(host)
    rules["ima"]["files"]["/bin/busybox"] = ["sha256:" + "aa" * 32]
    assert host.appraise(rules, first=0).code == "ima-file"


def test_a_list_with_a_line_left_out(host: Host) -> None:
    rules = whole(host)
    entries = ima.parse(host.lines)
    size = 28 + len(entries[0].template) + 4 + len(entries[0].data)
    second = size + 28 + len(entries[1].template) + 4 + len(entries[1].data)
    host.lines = host.lines[:size] + host.lines[second:]
    assert host.appraise(rules, first=0).code == "ima-mismatch"


def test_a_list_that_is_cut(host: Host) -> None:
    rules = whole(host)
    host.lines = host.lines[:-1]
    assert host.appraise(rules, first=0).code == "ima-malformed"


def test_the_list_of_another_boot(host: Host) -> None:
    """A list of another boot is replayed into PCR 10: the quote is genuine, but the list is refused."""
    host.lines = boot_logs.read("uki/ima_binary_runtime_measurements")
    host.tpm.pcrs[10] = list(ima.replay(ima.parse(host.lines)))[-1]
    found = host.appraise(whole(host), first=0)
    assert found.code == "ima-aggregate" and "another boot" in found.reason


def test_a_list_of_a_kernel_that_measures_no_programs(host: Host) -> None:
    """A list with only kernel modules after its first line, as with Secure Boot alone, gives no L5.

    It is short, and each of its lines is good.
    """
    entries = ima.parse(host.lines)
    modules = [entry for entry in entries if (found := ima.file(entry)) and found.path.endswith(b".ko")]
    host.lines = b"".join(
        struct.pack("<I20sI", 10, one.digest, len(one.template)) + one.template + ima._sized(one.data)
        for one in (entries[0], *modules)
    )
    host.tpm.pcrs[10] = list(ima.replay(ima.parse(host.lines)))[-1]
    assert modules
    found = host.appraise(whole(host), first=0)
    assert (found.level, found.code) == (4, "ima-unmeasured") and "ima_policy=tcb" in found.remedy


@pytest.fixture(scope="module", params=["rsa", "ecc"])
def signer(request: pytest.FixtureRequest) -> Any:
    return rsa.generate_private_key(65537, 2048) if request.param == "rsa" else ec.generate_private_key(ec.SECP256R1())


def test_a_signed_file_is_allowed_by_its_key(host: Host, signer: Any) -> None:
    rules = whole(host, keys=[pem(signer)])
    add(host, line(b"/usr/bin/new", CONTENT, signature(signer)))
    assert host.appraise(rules, first=0).code == "ok"
    assert host.appraise(whole(host, keys=[]) | {"ima": {**rules["ima"], "keys": []}}, first=0).code == "ima-file"


@pytest.mark.parametrize("change", ["other content", "other key", "hash", "cut", "long", "version", "no signature"])
def test_signatures_that_do_not_count(host: Host, signer: Any, change: str) -> None:
    rules = whole(host, keys=[pem(signer)])
    digest, made = CONTENT, signature(signer)
    if change == "other content":
        digest = b"sha256:\0" + hashlib.sha256(b"another").digest()
    elif change == "other key":
        other = ec.generate_private_key(ec.SECP256R1())
        made = signature(other)[:3] + made[3:7] + signature(other)[7:]
    elif change == "hash":
        made = made[:2] + b"\2" + made[3:]
    elif change == "cut":
        made = made[:-1]
    elif change == "long":
        made += b"\0"
    elif change == "version":
        made = b"\3\3" + made[2:]
    else:
        made = b""
    add(host, line(b"/usr/bin/new", digest, made))
    assert host.appraise(rules, first=0).code == "ima-file"


def test_exclusions_are_by_path(host: Host) -> None:
    rules = whole(host, exclude=["/var/cache/*", "/tmp/*.o"])
    add(host, line(b"/var/cache/x", CONTENT))
    assert host.appraise(rules, first=0).code == "ok"
    add(host, line(b"/var/lib/x", CONTENT))
    assert host.appraise(rules, first=0).code == "ima-file"


def test_a_violation_under_an_excluded_name(host: Host) -> None:
    """A violation with an excluded path is refused, since a violation's path is not measured and can be anything."""
    raw = line(b"/var/cache/x", b"sha256:\0" + bytes(32))
    rules = whole(host, exclude=["/var/cache/*"])
    add(host, raw[:4] + bytes(20) + raw[24:])
    assert host.appraise(rules, first=0).code == "ima-violation"
    rules["ima"]["violations"] = "ignore"
    assert host.appraise(rules, first=0).code == "ok"


def test_a_file_passed_off_as_a_violation(host: Host) -> None:
    """A line's digest is set to zero to look like a violation; the replay then doesn't give the quoted value."""
    rules = whole(host, violations="ignore")
    raw = line(b"/usr/bin/evil", CONTENT)
    add(host, raw)
    host.lines = host.lines[: -len(raw)] + raw[:4] + bytes(20) + raw[24:]
    assert host.appraise(rules, first=0).code == "ima-mismatch"


def test_an_unknown_template_is_known_by_its_digest(host: Host) -> None:
    raw = line(b"whatever", CONTENT, name=b"d-ng|n-ng|mine")
    rules = whole(host)
    add(host, raw)
    found = host.appraise(rules, first=0)
    assert found.code == "ima-file" and "unknown template" in found.reason
    rules["ima"]["entries"] = [ima.measured(ima.parse(raw)[0]).hex()]
    assert host.appraise(rules, first=0).code == "ok"


def test_a_list_begun_without_a_tpm(host: Host) -> None:
    rules = whole(host)
    host.lines = b""
    add(host, line(b"boot_aggregate", b"sha256:\0" + bytes(32)))
    found = host.appraise(rules, first=0)
    assert found.code == "ima-aggregate" and "no TPM" in found.reason
    host.lines = b""
    add(host, line(b"/init", CONTENT))
    assert host.appraise(rules, first=0).code == "ima-aggregate"


# -- the quote of PCR 10 ------------------------------------------------------------
def forged(host: Host, **changes: Any) -> verifier.Verified:
    made = host.tpm.measurements(host.context, host.lines)
    evidence = dataclasses.replace(
        host.tpm.evidence(host.context, PCRS["shim-grub"]),
        boot_log=host.log,
        ima=dataclasses.replace(made, **changes),
    )
    expected = Expected(host.context, PCRS["shim-grub"], None, None, policy.parse(whole(host)))
    return verifier.verify_quote(evidence, host.bound, expected)


def test_pcr_10_with_another_value_than_quoted(host: Host) -> None:
    with pytest.raises(refusals.WrongDigest):
        forged(host, value=bytes(32))


def test_pcr_10_by_a_quote_of_other_pcrs(host: Host) -> None:
    for pcrs in ((7,), (7, 10), ()):
        attest = host.tpm.attest(host.context.qualifying(), pcrs)
        with pytest.raises(refusals.WrongSelection):
            forged(host, attest=attest, signature=host.tpm.sign(attest))


def test_pcr_10_by_an_old_quote(host: Host) -> None:
    attest = host.tpm.attest(dataclasses.replace(host.context, nonce=bytes(32)).qualifying(), (10,))
    with pytest.raises(refusals.WrongQualifyingData):
        forged(host, attest=attest, signature=host.tpm.sign(attest))


def test_pcr_10_by_another_key(host: Host) -> None:
    other = type(host.tpm)()
    other.pcrs = host.tpm.pcrs
    made = other.measurements(host.context, host.lines)
    with pytest.raises(refusals.WrongSignature):
        forged(host, attest=made.attest, signature=made.signature)


def test_pcr_10_from_another_boot(host: Host) -> None:
    host_clock = host.tpm.clock
    host.tpm.clock = (900, 4, 0, 1)
    old = host.tpm.attest(host.context.qualifying(), (10,))
    host.tpm.clock = host_clock
    with pytest.raises(refusals.OtherBoot):
        forged(host, attest=old, signature=host.tpm.sign(old))
