"""Logs of many makers: each gives a policy that can be set and accepts the boot.

The expected rules for each log are written here, so that a silent fallback to plain values is noticed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.attestation import boot_logs

from netspace.attestation.evidence import Evidence
from netspace.attestation.learning import policy as learning
from netspace.attestation.logs import eventlog
from netspace.attestation.policy import policy
from netspace.attestation.refusals import LogMalformed
from netspace.attestation.verifier import appraisal

pytestmark = pytest.mark.skipif(
    boot_logs.others() is None, reason="there is no folder of others' logs (NETSPACE_EVENTLOGS)"
)

PROGRAMS = {"applications", "started_by"}
SECURE = {"secure_boot", "signers", *PROGRAMS}
LOADED = {"kernels", "files"}
LINES = {"command_lines", "grub_commands", *LOADED}
# By PCRs 0 to 9, 11, 12 and 14. Nothing: the log has no SHA-256, or is a piece of one.
EXPECTED = {
    "go-attestation/coreos_36_shielded_vm_no_secure_boot_eventlog": PROGRAMS | LOADED | {"initrds"},
    "go-attestation/crypto_agile_eventlog": PROGRAMS,
    "go-attestation/ebs_event_missing_eventlog": set(),
    "go-attestation/option_rom_eventlog": set(),
    "go-attestation/sb_cert_eventlog": SECURE | {"dbx"},
    "go-attestation/short_no_action_eventlog": set(),
    "go-attestation/ubuntu_2104_shielded_vm_no_secure_boot_eventlog": PROGRAMS | LINES,
    "go-attestation/windows_gcp_shielded_vm.json": set(),
    "go-tpm-tools/arch-linux-workstation.bin": PROGRAMS,
    "go-tpm-tools/confidential-gke-debug-251000_eventlog.bin": SECURE | LINES,
    "go-tpm-tools/cos-101-amd-sev.bin": SECURE | LINES,
    "go-tpm-tools/cos-85-amd-sev.bin": SECURE | LINES,
    "go-tpm-tools/cos-93-amd-sev.bin": SECURE | LINES,
    "go-tpm-tools/debian-10.bin": set(),
    "go-tpm-tools/eventlogwithsp800155.bin": SECURE | LINES - {"files"},
    "go-tpm-tools/glinux-alex.bin": PROGRAMS,
    "go-tpm-tools/ubuntu-1804-amd-sev.bin": PROGRAMS | LINES | {"initrds"},
    "go-tpm-tools/ubuntu-2104-no-dbx.bin": PROGRAMS | LINES,
    "go-tpm-tools/ubuntu-2104-no-secure-boot.bin": PROGRAMS | LINES,
    "go-tpm-tools/ubuntu-2404-amd-sevsnp.bin": PROGRAMS | LINES,
    "keylime/binary_bios_measurements": PROGRAMS | LINES | {"initrds"},
    "keylime/binary_bios_measurements-secureboot": SECURE | LINES | {"dbx", "sbat", "initrds"},
    "keylime/mb_log.b64": SECURE | LINES | {"dbx", "initrds"},
    "own/shim-grub/binary_bios_measurements": SECURE | LINES | {"dbx", "sbat", "initrds"},
    "own/uki/binary_bios_measurements": SECURE | LOADED | {"dbx", "initrds"},
    "rust-keylime/uefi_log.bin": PROGRAMS | LINES | {"initrds"},
    "tpm2-tools/event-arch-linux.bin": PROGRAMS,
    "tpm2-tools/event-bootorder.bin": PROGRAMS | LINES | {"initrds"},
    "tpm2-tools/event-gce-ubuntu-2104-log.bin": PROGRAMS | LINES,
    "tpm2-tools/event-moklisttrusted.bin": SECURE | LINES | {"dbx", "initrds"},
    "tpm2-tools/event-postcode.bin": SECURE | LINES | {"dbx", "initrds"},
    "tpm2-tools/event-sd-boot-fedora37.bin": set(),
    "tpm2-tools/event-uefi-sha1-log.bin": set(),
    "tpm2-tools/event-uefiaction.bin": set(),
    "tpm2-tools/event-uefiservices.bin": set(),
    "tpm2-tools/event-uefivar.bin": set(),
    "tpm2-tools/event.bin": set(),
}
GROUPS = {"default": tuple(range(8)), "l5": (*range(10), 11, 12, 14), "all": tuple(range(16)), "odd": (4, 7, 9)}


def logs() -> Iterator[str]:
    """Yield the names of the readable logs, of all makers."""
    folder = boot_logs.others()
    for path in sorted(folder.rglob("*")) if folder is not None else ():
        if path.is_file() and path.suffix not in (".yaml", ".txt", ".msg", ".sig", ".pcr", ".md"):
            try:
                eventlog.parse(raw(path))
            except (LogMalformed, ValueError, KeyError):
                continue
            yield str(path.relative_to(folder))  # type: ignore[arg-type]


def raw(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".json":  # as go-attestation dumps a host
        data = json.loads(data)["Log"]["Raw"]
    return base64.b64decode(data) if path.suffix in (".b64", ".json") else data


def evidence(name: str, pcrs: tuple[int, ...]) -> Evidence:
    folder = boot_logs.others()
    assert folder is not None
    data = raw(folder / name)
    log = eventlog.parse(data)
    values = log.replay("sha256") if "sha256" in log.banks else {}
    return Evidence("tpm", b"", b"", b"", {pcr: values.get(pcr, bytes(32)) for pcr in pcrs}, data)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("name", list(logs()))
def test_what_is_learned_of_a_real_log_takes_it(name: str, group: str) -> None:
    boot = evidence(name, GROUPS[group])
    found = learning.learn(None, {"gold": boot})
    judged = appraisal.appraise(boot, policy.accepted(found.after, quoted=GROUPS[group]), None)
    legible = "sha256" in eventlog.parse(boot.boot_log or b"").banks
    assert judged.level == (4 if legible else 3), judged
    assert legible or any("L4 is not reached" in note for note in found.notes)
    again = learning.learn(found.after, {"gold": boot})
    assert again.after == found.after
    rules = set(found.after["boot"]) - {"pcrs"}
    if group == "l5" and name in EXPECTED:
        assert rules == EXPECTED[name]
    for head, rule in (("applications", "applications"), ("secure_boot", "signers"), ("kernels", "kernels")):
        assert rule in rules or not legible or any(f"no rules for {head}" in note for note in found.notes)


def test_the_folder_has_the_logs_that_are_named_here() -> None:
    assert EXPECTED.keys() <= set(logs())
