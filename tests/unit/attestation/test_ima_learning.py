"""Permitted files, learned from measurement lists. The host reaches L5 only with the proposed rules."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from support.attestation import boot_forge, boot_logs
from support.attestation.judged_host import pem, signature
from test_ima import OTHER, SIG, VERITY, VIOLATION, line, named, sized

from netspace.attestation.evidence import Evidence, Measurements
from netspace.attestation.fleet import policies
from netspace.attestation.learning import policy as learning
from netspace.attestation.learning.policy import Wish
from netspace.attestation.logs import ima
from netspace.attestation.policy import policy
from netspace.attestation.verifier import appraisal
from netspace.errors import NetspaceError

CONTENT = hashlib.sha256(b"program").digest()
LEARN = Wish(now=1_700_000_000.0, ima=True)


def booted(boot: str, extra: bytes = b"", lines: bytes | None = None) -> Evidence:
    """Return one of the repository's recorded boots with its real list, and further lines."""
    raw = boot_logs.read(f"{boot}/ima_binary_runtime_measurements") if lines is None else lines
    values = boot_logs.values(boot)
    count = ima.match(ima.parse(raw), bytes(32), values[10]) if lines is None else None
    raw = raw if count is None else raw[: ima.offset(raw, count)]
    raw += extra
    *_, value = ima.replay(ima.parse(raw))
    return Evidence(
        "tpm",
        b"",
        b"",
        b"",
        {pcr: values[pcr] for pcr in boot_forge.PCRS[boot]},
        boot_logs.read(f"{boot}/binary_bios_measurements"),
        boot_logs.read("uki/systemd-tpm2-measure.log") if boot == "uki" else None,
        Measurements(b"", b"", value, 0, raw),
    )


def worth(data: Any, evidence: Evidence, now: float | None = None) -> tuple[int, str]:
    found = appraisal.appraise(evidence, policy.parse(data, now), None)
    return found.level, found.code


def signed(path: bytes, key: Any) -> bytes:
    return line(b"ima-sig", sized(b"sha256:\0" + CONTENT) + sized(path + b"\0") + sized(signature(key)))


@pytest.mark.parametrize("boot", ["shim-grub", "uki"])
def test_a_golden_host_with_its_real_list_reaches_l5_by_what_was_learned(boot: str) -> None:
    evidence = booted(boot)
    found = learning.learn(None, {"gold": evidence}, LEARN)
    listed = {file.path for entry in ima.parse(evidence.ima.lines) if (file := ima.file(entry))}  # type: ignore[union-attr]
    assert {path.encode() for path in found.after["ima"]["files"]} == listed - {b"boot_aggregate"}
    assert worth(found.after, evidence) == (5, "ok")
    assert not any("is not reached" in note for note in found.notes)
    # Another program is refused, and the same program with another content.
    assert worth(found.after, booted(boot, line(b"ima-ng", named(b"/usr/bin/other")))) == (4, "ima-file")
    known = next(iter(found.after["ima"]["files"])).encode()
    assert worth(found.after, booted(boot, line(b"ima-ng", named(known, b"changed")))) == (4, "ima-file")
    again = learning.learn(found.after, {"gold": evidence}, LEARN)
    assert again.after == again.before == found.after


def test_without_the_wish_lists_are_not_looked_at() -> None:
    found = learning.learn(None, {"gold": booted("shim-grub")})
    assert "ima" not in found.after


def test_an_update_makes_the_list_longer_and_both_are_good() -> None:
    old = booted("shim-grub", line(b"ima-ng", named(b"/usr/bin/shop", b"one")))
    new = booted("shim-grub", line(b"ima-ng", named(b"/usr/bin/shop", b"two")))
    first = learning.learn(None, {"gold": old}, LEARN)
    second = learning.learn(first.after, {"gold": new}, LEARN)
    assert second.after["version"] == 2 and len(second.after["ima"]["files"]["/usr/bin/shop"]) == 2
    assert worth(second.after, old) == worth(second.after, new) == (5, "ok")
    added = hashlib.sha256(b"two").hexdigest()
    assert policies.diff(second.before, second.after)[-1] == f"+ima:files:/usr/bin/shop: sha256:{added}"


def test_the_old_has_an_end_where_that_is_asked_for() -> None:
    old = booted(
        "shim-grub", line(b"ima-ng", named(b"/usr/bin/shop", b"one")) + line(b"ima-ng", named(b"/usr/bin/rare"))
    )
    new = booted("shim-grub", line(b"ima-ng", named(b"/usr/bin/shop", b"two")))
    first = learning.learn(None, {"gold": old}, LEARN)
    end = "2023-12-01T00:00Z"
    second = learning.learn(first.after, {"gold": new}, dataclasses.replace(LEARN, until=end))
    was = "sha256:" + hashlib.sha256(b"one").hexdigest()
    assert second.after["until"] == {end: {"ima": {"files": {"/usr/bin/shop": [was]}}}}
    # A file that was not run this time is none that was replaced.
    assert "/usr/bin/rare" in second.after["ima"]["files"]
    assert f"+until:{end}:ima:files:/usr/bin/shop: {was}" in policies.diff(second.before, second.after)
    last = policy.when(end)
    assert worth(second.after, old, last - 1) == worth(second.after, new, last - 1) == (5, "ok")
    assert worth(second.after, old, last) == (4, "ima-file") and worth(second.after, new, last) == (5, "ok")
    # What has ended is left out of the next one.
    third = learning.learn(second.after, {"gold": new}, dataclasses.replace(LEARN, now=last + 1))
    assert "until" not in third.after and third.after["version"] == 3


def test_files_signed_by_a_given_key_need_no_digest() -> None:
    key, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    evidence = booted("shim-grub", signed(b"/usr/bin/signed", key))
    bare = learning.learn(None, {"gold": evidence}, LEARN)
    assert "/usr/bin/signed" in bare.after["ima"]["files"] and "keys" not in bare.after["ima"]
    assert any("signed by the key" in note for note in bare.notes)
    found = learning.learn(None, {"gold": evidence}, dataclasses.replace(LEARN, keys=(pem(other), pem(key))))
    assert "/usr/bin/signed" not in found.after["ima"]["files"] and found.after["ima"]["keys"] == [pem(key)]
    assert not any("signed by the key" in note for note in found.notes)
    assert worth(found.after, evidence) == (5, "ok")
    # A signature by that key over another file is good, one by another key is not.
    assert worth(found.after, booted("shim-grub", signed(b"/usr/bin/later", key))) == (5, "ok")
    assert worth(found.after, booted("shim-grub", signed(b"/usr/bin/later", other))) == (4, "ima-file")


def test_what_is_excluded_is_not_listed_and_what_cannot_be_learned_is_told() -> None:
    weak = line(b"ima-ng", named(b"/opt/old", algorithm=b"sha1"))
    changing = line(b"ima-ng", named(b"/var/tmp/x", b"1")) + line(b"ima-ng", named(b"/var/tmp/x", b"2"))
    excluded = line(b"ima-ng", named(b"/var/cache/y"))
    evidence = booted("shim-grub", weak + changing + excluded + OTHER + VERITY + VIOLATION + SIG)
    before = learning.learn(None, {"gold": booted("shim-grub")}, LEARN).after
    before["ima"]["exclude"] = ["/var/cache/*"]
    found = learning.learn(before, {"gold": evidence}, LEARN)
    rules, notes = found.after["ima"], "\n".join(found.notes)
    assert len(rules["files"]["/var/tmp/x"]) == 2 and not {"/var/cache/y", "/opt/old", "/bin/verity"} & set(
        rules["files"]
    )
    assert rules["entries"] == [hashlib.sha256(b"whatever").hexdigest()] and rules["exclude"] == ["/var/cache/*"]
    assert "files changed while the host ran; consider 'exclude' for /var/tmp/x" in notes
    assert "only 'exclude' can allow files without a digest of SHA-256 or better: /bin/verity, /opt/old" in notes
    assert "1 files were written while they were measured" in notes
    assert "L5 is not reached" in notes


def test_pcrs_that_are_not_quoted_are_told_of() -> None:
    evidence = booted("shim-grub")
    fewer = dataclasses.replace(evidence, pcrs={pcr: evidence.pcrs[pcr] for pcr in range(8)})
    found = learning.learn(None, {"gold": fewer}, LEARN)
    assert found.after["ima"]["files"], "the files are the same"
    assert any("L5 is not reached" in note and "[ima-unproved]" in note for note in found.notes)


def test_a_file_called_boot_aggregate_is_not_learned() -> None:
    evidence = booted("shim-grub", line(b"ima-ng", named(b"boot_aggregate")))
    found = learning.learn(None, {"gold": evidence}, LEARN)
    assert "boot_aggregate" not in found.after["ima"]["files"]
    assert any("boot_aggregate" in note and "a file has its name" in note for note in found.notes)
    assert worth(found.after, evidence) == (4, "ima-file")


def test_a_kernel_started_by_kexec_is_told_and_not_allowed() -> None:
    first = ima.parse(booted("shim-grub").ima.lines)[0]  # type: ignore[union-attr]
    evidence = booted("shim-grub", line(first.template, first.data))
    found = learning.learn(None, {"gold": evidence}, LEARN)
    assert any("started by kexec" in note for note in found.notes)
    assert worth(found.after, evidence) == (4, "ima-kexec")
    found.after["ima"]["kexec"] = "allow"
    assert worth(found.after, evidence) == (5, "ok")
    again = learning.learn(found.after, {"gold": evidence}, LEARN)
    assert again.after["ima"]["kexec"] == "allow"


def test_lines_into_other_pcrs_are_not_learned() -> None:
    evidence = booted("shim-grub", line(b"ima-ng", named(b"/usr/bin/unproved"), pcr=11) + line(b"ima-ng", named(b"/a")))
    found = learning.learn(None, {"gold": evidence}, LEARN)
    assert "/usr/bin/unproved" not in found.after["ima"]["files"] and "/a" in found.after["ima"]["files"]
    assert any("1 lines are in PCRs other than 10" in note for note in found.notes)
    assert worth(found.after, evidence) == (4, "ima-file")


@pytest.mark.skipif(boot_logs.others() is None, reason="there is no folder of others' logs (NETSPACE_EVENTLOGS)")
def test_what_is_learned_of_others_lists_allows_what_it_can() -> None:
    """Files are learned even from a list whose first line no quote proves; a note says that such a list gives no L5."""
    folder = boot_logs.others()
    assert folder is not None
    for boot in ("shim-grub", "uki"):
        lines = ima.canonical((folder / "own" / boot / "ima_ascii.txt").read_bytes())
        evidence = booted(boot, lines=lines)
        found = learning.learn(None, {"gold": evidence}, LEARN)
        assert worth(found.after, evidence) == (5, "ok")
    lines = ima.canonical((folder / "rust-keylime/ascii_runtime_measurements").read_bytes())
    evidence = booted("shim-grub", lines=lines)
    found = learning.learn(None, {"other": evidence}, LEARN)
    weak = [note for note in found.notes if "without a digest of SHA-256 or better" in note]
    assert weak and "ima" not in found.after, "its digests are SHA-1: none can be listed"
    excluded = {**found.after, "ima": {"exclude": ["/*bin/*", "/lib*", "/etc/*", "/usr/*", "/init", "/run/*"]}}
    assert worth(excluded, evidence) == (4, "ima-aggregate"), "IMA found no TPM when that host started"


@pytest.mark.parametrize("wrong", ["none", "not first", "cut", "another", "mismatch"])
def test_a_list_that_is_not_the_quoted_one_teaches_nothing(wrong: str) -> None:
    evidence = booted("shim-grub")
    brought = evidence.ima
    assert brought is not None
    changed: Measurements | None = {
        "none": None,
        "not first": dataclasses.replace(brought, first=1),
        "cut": dataclasses.replace(brought, lines=brought.lines[:-1]),
        "another": booted("uki").ima,
        "mismatch": dataclasses.replace(brought, value=b"\1" * 32),
    }[wrong]
    found = learning.learn(None, {"gold": dataclasses.replace(evidence, ima=changed)}, LEARN)
    if wrong == "another":  # a list and a quote that fit each other: it is told that they are of another boot
        assert any("[ima-aggregate]" in note for note in found.notes)
        return
    assert "ima" not in found.after and any("nothing was learned" in note for note in found.notes)


def test_lines_beyond_the_quote_are_not_learned() -> None:
    evidence = booted("shim-grub")
    brought = evidence.ima
    assert brought is not None
    ahead = dataclasses.replace(brought, lines=brought.lines + line(b"ima-ng", named(b"/tmp/later")))
    found = learning.learn(None, {"gold": dataclasses.replace(evidence, ima=ahead)}, LEARN)
    assert "/tmp/later" not in found.after["ima"]["files"]


def test_names_that_are_no_text_and_too_long_ones() -> None:
    odd = (
        line(b"ima-ng", named(b"/srv/\xff\xfe"))
        + line(b"ima-ng", named(b"/" + b"x" * 5000))
        + line(b"ima-ng", named(b""))
    )
    evidence = booted("shim-grub", odd)
    found = learning.learn(None, {"gold": evidence}, LEARN)
    assert "/srv/\udcff\udcfe" in found.after["ima"]["files"] and max(map(len, found.after["ima"]["files"])) < 4097
    "\n".join(policies.diff(None, found.after)).encode()  # may be shown
    "\n".join(found.notes).encode()
    assert worth(found.after, evidence) == (4, "ima-file")


def test_too_many_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "MAX_FILES", 10)
    with pytest.raises(NetspaceError, match="at most 10 can be listed"):
        learning.learn(None, {"gold": booted("shim-grub")}, LEARN)


# -- policies with an end ----------------------------------------------------------------
DIGEST, LATER = "ab" * 32, "cd" * 32


def ending(**until: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "boot": {"kernels": [DIGEST], "pcrs": {0: [DIGEST]}},
        "ima": {},
        "until": {"2026-12-24": until},
    }


def test_what_ends_counts_until_then_and_is_part_of_the_fingerprint() -> None:
    data = ending(boot={"kernels": [LATER], "pcrs": {0: [LATER]}}, ima={"files": {"/bin/x": [f"sha256:{LATER}"]}})
    end = policy.when("2026-12-24")
    before, after = policy.parse(data, end - 1), policy.parse(data, end)
    assert before.boot is not None and after.boot is not None and before.ima is not None and after.ima is not None
    assert before.boot.kernels == {bytes.fromhex(DIGEST), bytes.fromhex(LATER)} and len(before.boot.pcrs[0]) == 2
    assert after.boot.kernels == {bytes.fromhex(DIGEST)} and len(after.boot.pcrs[0]) == 1
    assert len(before.ima.lines) == 1 and not after.ima.lines
    assert (before.changes, after.changes) == (end, None) and before.fingerprint != after.fingerprint
    assert policy.parse(data).fingerprint == after.fingerprint, "without a time nothing that ends counts"
    bare = {key: value for key, value in data.items() if key != "until"}
    assert after.fingerprint == policy.parse(bare).fingerprint


@pytest.mark.parametrize(
    ("until", "message"),
    [
        ([], "until: expected a mapping"),
        ({"soon": {}}, "until: 'soon': expected a date"),
        ({"2026-12-24": []}, "until:2026-12-24: expected a mapping"),
        ({"2026-12-24": {"version": 1}}, "until:2026-12-24:version: unknown"),
        ({"2026-12-24": {"boot": {"unchecked": [1]}}}, "boot:unchecked: unknown"),
        ({"2026-12-24": {"boot": {"secure_boot": False}}}, "boot:secure_boot: unknown"),
        ({"2026-12-24": {"boot": {"dbx": []}}}, "boot:dbx: unknown"),
        ({"2026-12-24": {"ima": {"violations": "ignore"}}}, "ima:violations: unknown"),
        ({"2026-12-24": {"boot": {"signers": [DIGEST]}}}, "add boot:signers"),
        ({"2026-12-24": {"boot": {"pcrs": {1: [DIGEST]}}}}, "only PCRs that policy:boot:pcrs lists"),
        ({"2026-12-24": {"boot": {"pcrs": {0: [DIGEST], "0": [DIGEST]}}}}, "that policy:boot:pcrs lists, each once"),
        ({"2026-12-24": {"boot": {"kernels": ["zz"]}}}, "boot:kernels"),
        ({"2020-12-24": {"boot": {"kernels": DIGEST}}}, "boot:kernels: expected a list"),
        ({"2020-12-24": {"boot": {"pcrs": []}}}, "boot:pcrs"),
        ({"2026-12-24": {"ima": {"files": []}}}, "ima:files"),
        ({f"2026-12-{day:02}": {} for day in range(1, 20)}, "at most 16"),
    ],
)
def test_mistakes_in_what_ends(until: Any, message: str) -> None:
    with pytest.raises(policy.PolicyError, match=message):
        policy.parse({**ending(), "until": until}, policy.when("2025-01-01"))


def test_keys_of_a_mapping_that_end_are_joined_by_path() -> None:
    data = ending(ima={"files": {"/bin/x": [f"sha256:{LATER}"]}})
    data["ima"] = {"files": {"/bin/x": [f"sha256:{DIGEST}"], "/bin/y": [f"sha256:{DIGEST}"]}}
    found = policy.parse(data, 0.0).ima
    assert found is not None and len(found.lines) == 3


def test_files_are_shown_a_line_each_removed_ones_too() -> None:
    one = {"version": 1, "ima": {"files": {"/a": ["sha256:" + DIGEST]}}}
    two = {"version": 2, "ima": {"files": {"/b": ["sha256:" + DIGEST]}}}
    assert policies.diff(one, two)[-2:] == [f"-ima:files:/a: sha256:{DIGEST}", f"+ima:files:/b: sha256:{DIGEST}"]
