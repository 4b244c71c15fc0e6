"""The appraisal of measurement lists: proof that a list is from this boot, and the names in its lines."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from typing import Any

import pytest
from support.attestation import boot_logs
from support.attestation.boot_forge import PCRS, record
from support.attestation.judged_host import CONTENT, Host, add, allowed, line, pem, signature, whole
from test_ima import ALL, NG, OLD, named, sized
from test_ima import line as raw_line

from netspace.attestation import refusals
from netspace.attestation.evidence import Evidence, Measurements
from netspace.attestation.logs import ima
from netspace.attestation.policy import policy
from netspace.attestation.verifier import appraisal, ima_rules


@pytest.fixture
def host(fake_tpm: Any, context: Any) -> Host:
    return Host(fake_tpm, context)


def code(host: Host, rules: dict[str, Any], **more: Any) -> str:
    return host.appraise(rules, first=0, **more).code


def alone(host: Host, quoted: tuple[int, ...], systemd: bytes | None = None) -> tuple[str, str]:
    """Appraise the list alone, without the boot; return the reason code and the reason (``ok``: accepted)."""
    rules = policy.parse({"version": 1, "ima": whole(host)["ima"]})
    assert rules.ima is not None
    pcrs = {pcr: host.tpm.pcrs[pcr] for pcr in quoted}
    made = Measurements(b"", b"", host.tpm.pcrs[10], 0, host.lines)
    evidence = Evidence("tpm", b"", b"", b"", pcrs, host.log, systemd, made)
    try:
        found = ima_rules.judged(evidence, rules.ima, rules.fingerprint, (1, 0), None)
    except refusals.Refused as err:
        return err.code, f"{err}; {err.remedy}"
    return found.refused or ("ok", "")


def aggregate(host: Host) -> bytes:
    return b"sha256:\0" + hashlib.sha256(b"".join(host.tpm.pcrs[pcr] for pcr in range(10))).digest()


def begin(host: Host, first: bytes) -> None:
    """Replace the list's first line by *first*, as if the kernel had measured that line."""
    host.lines = first + host.lines[ima.offset(host.lines, 1) :]
    add(host, b"")


# -- a file called boot_aggregate ----------------------------------------------------
@pytest.mark.parametrize("how", ["listed", "excluded", "signed", "unsigned"])
def test_a_file_called_boot_aggregate_is_refused(host: Host, how: str) -> None:
    """A file with the bare name boot_aggregate is refused, also if it is listed, signed or excluded.

    The kernel writes a bare name for any file whose mount is in no tree.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    rules = whole(host, keys=[pem(key)], exclude=["boot_*"])
    rules["ima"]["files"]["boot_aggregate"] = ["sha256:" + hashlib.sha256(b"program").hexdigest()]
    content = CONTENT if how == "listed" else b"sha256:\0" + hashlib.sha256(b"evil").digest()
    made = signature(key) if how == "signed" else None
    assert code(host, rules) == "ok"
    add(host, line(b"boot_aggregate", content, made))
    found = host.appraise(rules, first=0)
    assert (found.level, found.code) == (4, "ima-file") and "it is a file" in found.reason


@pytest.mark.parametrize("bank", ["sha1", "sha256", "sha384", "sha512"])
def test_a_real_kernels_boot_aggregate_that_is_a_file_is_refused(bank: str) -> None:
    """A recorded list of Linux 6.12 with programs of detached mounts (open_tree, lazy umount) is refused."""
    raw = ima.canonical(boot_logs.read(f"detached/binary_runtime_measurements_{bank}"))
    assert raw == ima.canonical(boot_logs.read("detached/ascii_runtime_measurements_sha256"))
    values = boot_logs.values("detached")
    entries = ima.parse(raw)
    named = [number for number, entry in enumerate(entries) if (found := ima.file(entry)) and b"/" not in found.path]
    assert [ima.file(entries[number]).path for number in named] == [b"boot_aggregate"] * 3  # type: ignore[union-attr]
    made = Measurements(b"", b"", values.pop(10), 0, raw)
    evidence = Evidence("tpm", b"", b"", b"", values, None, None, made)
    files = allowed(raw)["files"]

    def code_of(lines: dict[str, list[str]]) -> tuple[str, str] | None:
        rules = policy.parse({"version": 1, "ima": {"files": lines}})
        assert rules.ima is not None
        return ima_rules.judged(evidence, rules.ima, rules.fingerprint, (1, 0), None).refused

    found = code_of(files)
    assert found is not None and found[0] == "ima-file" and f"line {named[1]}:" in found[1]
    del files["/init"]
    refused = code_of(files)
    assert refused is not None and refused[1].startswith("line 1: '/init'"), "but for that the list is good"


def test_a_file_called_boot_aggregate_in_an_increment(host: Host) -> None:
    rules = whole(host)
    start = host.appraise(rules, first=0).ima
    assert start is not None
    add(host, line(b"boot_aggregate", CONTENT))
    assert host.appraise(rules, first=start.lines, start=start).code == "ima-file"


def test_another_bare_name_is_judged_by_its_digest(host: Host) -> None:
    rules = whole(host)
    rules["ima"]["files"]["memfd:runc"] = ["sha256:" + hashlib.sha256(b"program").hexdigest()]
    add(host, line(b"memfd:runc", CONTENT))
    assert code(host, rules) == "ok"
    add(host, line(b"memfd:runc", b"sha256:\0" + bytes(32)))
    assert code(host, rules) == "ima-file"


# -- the first line --------------------------------------------------------------------
@pytest.mark.parametrize("missing", range(10))
def test_a_first_line_that_quoted_pcrs_do_not_prove(host: Host, missing: int) -> None:
    """A first line is refused if its PCRs are not quoted.

    With IMA off, root could write a good list with any first line.
    """
    assert alone(host, PCRS["shim-grub"]) == ("ok", "")
    found, reason = alone(host, tuple(pcr for pcr in PCRS["shim-grub"] if pcr != missing))
    assert found == "ima-unproved" and f"PCR {missing} is not" in reason and "quote PCRs 0 to 9" in reason


@pytest.mark.parametrize("algorithm", ["sha1", "sha384", "sha512", "sm3-256"])
def test_a_first_line_of_another_bank_proves_nothing(host: Host, algorithm: str) -> None:
    size = {"sha1": 20, "sha384": 48, "sha512": 64, "sm3-256": 32}[algorithm]
    begin(host, line(b"boot_aggregate", algorithm.encode() + b":\0" + b"\1" * size))
    found = host.appraise(whole(host), first=0)
    assert (found.level, found.code) == (4, "ima-unproved") and algorithm in found.reason


def test_a_first_line_of_fewer_pcrs_is_another_boots(host: Host) -> None:
    first = hashlib.sha256(b"".join(host.tpm.pcrs[pcr] for pcr in range(8))).digest()
    begin(host, line(b"boot_aggregate", b"sha256:\0" + first))
    assert code(host, whole(host)) == "ima-aggregate"


@pytest.mark.parametrize("pcr", range(10))
def test_a_pcr_that_was_extended_after_the_start_is_noticed(host: Host, pcr: int) -> None:
    """An extension of PCR 8 or 9 after the kernel's start is detected.

    Root could claim another kernel or command line by such an extension.
    """
    assert alone(host, PCRS["shim-grub"]) == ("ok", "")
    host.log = relogged(host, pcr)
    assert alone(host, PCRS["shim-grub"])[0] == "ima-aggregate"


def relogged(host: Host, pcr: int) -> bytes:
    """Return the host's log after an extension of *pcr* with a text that the log names."""
    from support.attestation import boot_forge

    more = boot_forge.measured(pcr, boot_forge.events.IPL, b"said later")
    host.tpm.pcrs[pcr] = hashlib.sha256(host.tpm.pcrs[pcr] + more.digests["sha256"]).digest()
    return boot_forge.packed([*boot_forge.log(host.boot).events[1:], more])


def test_what_systemd_measures_into_pcr_9_is_later_than_the_start(fake_tpm: Any, context: Any) -> None:
    host = Host(fake_tpm, context, "uki")
    text = "nvpcr-init:hardware:0x1d10200:sha256:" + "de" * 32
    digest = hashlib.sha256(text.encode()).digest()
    later = record(9, digest, text, "nvpcr-init")
    systemd = boot_logs.read("uki/systemd-tpm2-measure.log")
    host.lines = host.lines[: ima.offset(host.lines, ima.match(ima.parse(host.lines), bytes(32), host.tpm.pcrs[10]))]
    before = aggregate(host)
    host.tpm.pcrs[9] = hashlib.sha256(host.tpm.pcrs[9] + digest).digest()
    assert alone(host, PCRS["uki"], systemd + later) == ("ok", "")
    assert alone(host, PCRS["uki"], systemd)[0] == "ima-aggregate", "nothing tells of it"
    # The same word extended before the kernel started: then its first line would tell.
    assert aggregate(host) != before
    begin(host, line(b"boot_aggregate", aggregate(host)))
    assert alone(host, PCRS["uki"], systemd + later)[0] == "ima-aggregate"


def test_a_violation_is_no_first_line(host: Host) -> None:
    rules = whole(host, violations="ignore")
    raw = line(b"boot_aggregate", aggregate(host))
    begin(host, raw[:4] + bytes(20) + raw[24:])
    assert code(host, rules) == "ima-aggregate"


def test_a_first_line_into_another_pcr_is_none(host: Host) -> None:
    raw = host.lines
    host.lines = struct.pack("<I", 11) + raw[4:]
    add(host, b"")
    assert code(host, whole(host)) == "ima-aggregate"


def test_an_untouched_pcr_10_is_a_kernel_without_ima(host: Host) -> None:
    host.tpm.pcrs[10] = bytes(32)
    found = host.appraise(whole(host), first=0)
    assert (found.level, found.code) == (4, "ima-unmeasured") and "no IMA" in found.reason


def test_process_1_under_a_bare_name_is_none(host: Host) -> None:
    host.lines = host.lines[: ima.offset(host.lines, 1)]
    add(host, line(b"systemd", CONTENT))
    rules = whole(host)
    rules["ima"]["files"]["systemd"] = ["sha256:" + hashlib.sha256(b"program").hexdigest()]
    assert code(host, rules) == "ima-unmeasured"


@pytest.mark.parametrize(
    ("pattern", "founded"),
    [
        ("root=/dev/vda ima_policy=tcb", True),
        ("root=/dev/vda ima_policy=tcb|secure_boot", True),
        ("root=/dev/vda ima_policy=secure_boot", False),
        ("root=/dev/vda ima_policy=tcbx", False),
        ("root=* ima_policy=tcb", False),
    ],
)
def test_a_command_line_that_may_turn_ima_off_gives_no_l5(host: Host, pattern: str, founded: bool) -> None:
    """A policy whose ``*`` may match initcall_blacklist=init_ima gives no L5, since root could then write the list."""
    rules = whole(host)
    rules["boot"]["command_lines"] = [pattern]
    evidence = dataclasses.replace(host.tpm.evidence(host.context, PCRS["shim-grub"]), boot_log=host.log)
    found = appraisal._unfounded(policy.parse(rules), evidence, None, {8, 9})
    assert (found is None) == founded, found


def test_a_list_that_rests_on_nothing_is_not_remembered(host: Host) -> None:
    """A list that the boot rules don't support gives L4, and the verifier doesn't remember it.

    Otherwise root could add a good line to PCR 9, and continue the list.
    """
    rules = whole(host)
    good = host.appraise(rules, first=0)
    assert good.code == "ok" and good.ima is not None
    loose = {**rules, "boot": {**rules["boot"], "command_lines": ["/vmlinuz * ima_policy=tcb"]}}
    found = host.appraise(loose, first=0)
    assert (found.level, found.code, found.ima) == (4, "ima-unfounded", None)


# -- kexec -----------------------------------------------------------------------------
def test_a_kernel_started_by_kexec_is_refused_unless_allowed(host: Host) -> None:
    rules = whole(host)
    add(host, line(b"boot_aggregate", aggregate(host)))
    found = host.appraise(rules, first=0)
    assert (found.level, found.code) == (4, "ima-kexec") and "kexec: allow" in found.remedy
    rules["ima"]["kexec"] = "allow"
    assert code(host, rules) == "ok"
    # Still the PCRs' digest, whatever the name.
    add(host, line(b"boot_aggregate", CONTENT))
    assert code(host, rules) == "ima-file"


def test_logs_are_read_once_however_many_lines_say_boot_aggregate(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logs are parsed only once, whatever the number of lines boot_aggregate.

    Root can make such lines, and parsing a log of a MiB takes time.
    """
    rules = whole(host)
    rules["ima"]["kexec"] = "allow"
    for _ in range(50):
        add(host, line(b"boot_aggregate", aggregate(host)))
    read: list[Evidence] = []
    real = ima_rules._at_start
    monkeypatch.setattr(ima_rules, "_at_start", lambda evidence: read.append(evidence) or real(evidence))
    assert code(host, rules) == "ok"
    assert len(read) == 1


def test_a_kernel_started_by_kexec_later_stays_refused(host: Host) -> None:
    rules = whole(host)
    start = host.appraise(rules, first=0).ima
    assert start is not None
    add(host, line(b"boot_aggregate", aggregate(host)))
    found = host.appraise(rules, first=start.lines, start=start)
    assert found.code == "ima-kexec" and found.ima is not None
    again = host.appraise(rules, first=found.ima.lines, start=found.ima)
    assert again.code == "ima-kexec" and again.remedy == found.remedy


# -- lines into other PCRs, names, bounds ------------------------------------------------
def test_lines_into_another_pcr_lower_and_never_raise(host: Host) -> None:
    rules = whole(host)
    other = struct.pack("<I", 11) + host.lines[ima.offset(host.lines, 1) : ima.offset(host.lines, 2)][4:]
    at = ima.offset(host.lines, 5)
    before = host.tpm.pcrs[10]
    host.lines = host.lines[:at] + other + host.lines[at:]
    assert code(host, rules) == "ok" and host.tpm.pcrs[10] == before, "it is not in PCR 10"
    evil = struct.pack("<I", 11) + line(b"/usr/bin/evil", CONTENT)[4:]
    host.lines = host.lines[:at] + evil + host.lines[at:]
    assert code(host, rules) == "ima-file"
    # A list whose process 1 is in another PCR alone has none that is proved.
    host.lines = host.lines[: ima.offset(host.lines, 1)] + struct.pack("<I", 11) + line(b"/init", CONTENT)[4:]
    add(host, line(b"/usr/bin/other", CONTENT))
    digest = "sha256:" + hashlib.sha256(b"program").hexdigest()
    rules["ima"]["files"] = {"/init": [digest], "/usr/bin/other": [digest]}
    assert code(host, rules) == "ima-unmeasured"


def test_a_line_moved_to_another_pcr_leads_elsewhere(host: Host) -> None:
    rules = whole(host)
    evil = line(b"/usr/bin/evil", CONTENT)
    add(host, evil)
    host.lines = host.lines[: -len(evil)] + struct.pack("<I", 11) + evil[4:]
    assert code(host, rules) == "ima-mismatch"


def test_another_templates_data_has_no_path_as_an_old_line() -> None:
    """A line whose data imitates the old template ``ima`` has no path, since a template's name is not measured."""
    digest = b"sha256:\0" + bytes(range(8)) + b"/tmp/" + bytes(range(13, 32))
    data = sized(digest) + sized(b"/usr/bin/" + b"e" * (276 - 44 - 4 - 9 - 1) + b"\0")
    assert len(data) == 276
    old = data[:20] + struct.pack("<I", 256) + data[20:]
    made = ima.Entry(hashlib.sha1(data).digest(), b"ima", old)
    assert ima.genuine(made) and ima.measured(made) == hashlib.sha256(data).digest()
    assert ima.file(made) is None


@pytest.mark.parametrize("path", [b"/tmp/x\0/bin/y", b"", b"/" + b"x" * 4095])
def test_a_path_with_nul_or_beyond_all_bounds_is_none(path: bytes) -> None:
    (entry,) = ima.parse(raw_line(b"ima-ng", named(path)))
    found = ima.file(entry)
    assert (found is None) == (path != b"")


def test_a_path_without_its_nul_is_none() -> None:
    for path in (b"", b"/bin/x"):
        (entry,) = ima.parse(raw_line(b"ima-ng", sized(b"sha256:\0" + bytes(32)) + sized(path)))
        assert ima.file(entry) is None


def test_a_signature_that_is_cut_is_none() -> None:
    data = named(b"/bin/x") + struct.pack("<I", 9) + b"\3\2"
    (entry,) = ima.parse(raw_line(b"ima-sig", data))
    assert ima.file(entry) is None


def test_many_exclusions_and_long_names_take_little_time() -> None:
    import time

    rules = policy.parse(
        {"version": 1, "ima": {"exclude": [f"/*{number}*x*y*z*/{number}" for number in range(255)]}}
    ).ima
    assert rules is not None
    lines = b"".join(
        raw_line(b"ima-ng", named(b"/" + b"x" * 1_000_000, b"%d" % number)) for number in range(28)
    ) + b"".join(raw_line(b"ima-ng", named(b"/" + b"x" * 4000, b"%d" % number)) for number in range(200))
    started = time.process_time()
    files = [found for entry in ima.parse(lines) if (found := ima.file(entry)) is not None]
    assert len(files) == 200 and not any(rules.allows(one) for one in files)
    assert time.process_time() - started < 2


# -- the other forms of a list -----------------------------------------------------------
def by(bank: str, raw: bytes) -> bytes:
    """Return a list in the kernel's form for *bank* (Linux 6.10)."""
    size = hashlib.new(bank).digest_size
    made = b""
    for entry in ima.parse(raw):
        digest = bytes(size) if entry.violation else ima.measured(entry, bank)
        body = entry.data if entry.template == b"ima" else sized(entry.data)
        made += struct.pack("<I", entry.pcr) + digest + sized(entry.template) + body
    return made


@pytest.mark.parametrize("bank", ["sha1", "sha256", "sha384", "sha512"])
def test_the_list_of_each_algorithm_is_the_same_list(bank: str) -> None:
    raw = boot_logs.read("shim-grub/ima_binary_runtime_measurements") + b"".join(ALL)
    assert ima.canonical(by(bank, raw)) == raw
    assert ima.canonical(by(bank, OLD + NG)) == OLD + NG


@pytest.mark.parametrize("bank", ["sha1", "sha256", "sha512"])
def test_the_text_of_each_algorithm_is_the_same_list(bank: str) -> None:
    text, raw = b"", b""
    for entry in ima.parse(boot_logs.read("shim-grub/ima_binary_runtime_measurements"))[:20]:
        file = ima.file(entry)
        assert file is not None
        pcr = 9 if text else 10
        algorithm, _, digest = file.digest.partition(b":\0")
        shown = ima.measured(entry, bank).hex().encode()
        text += b"%2d " % pcr + shown + b" ima-sig " + algorithm + b":" + digest.hex().encode()
        text += b" " + file.path + b" \n"
        raw += raw_line(b"ima-sig", entry.data, pcr=pcr)
    assert ima.canonical(text) == raw


def test_a_list_of_another_algorithm_with_a_changed_line_is_refused() -> None:
    raw = by("sha256", b"".join(ALL))
    with pytest.raises(ima.ListMalformed, match="digest does not match the line"):
        ima.canonical(raw.replace(b"/bin/sig", b"/bin/gis"))
    assert ima.canonical(b"") == b"" and ima.canonical(NG) == NG
