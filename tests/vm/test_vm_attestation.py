"""Trust of a virtual machine with Secure Boot, a TPM and a boot log, whose kernel finally measures programs, too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.hosts.whole_host import all_true
from vmlab import image
from vmlab.lab import Lab, Salt
from vmlab.machine import Machine
from vmlab.master import Master
from vmlab.trust import PCRS, REFERENCES, TPM, learn, vault

pytestmark = pytest.mark.vm


def test_a_measured_boot_is_trusted_and_another_command_line_is_not(
    clone: Callable[[str], Machine], lab: Lab, tmp_path: Path
) -> None:
    """A host and its master each appraise a good boot, and refuse a boot with another command line."""
    machine = clone("measured")
    salt = Salt(machine)
    assert salt.apply(vault("L4", **TPM))["netspace environments"]["result"] is False
    status = salt("netspace_attestation.status")
    assert status["level"] == "L3", status
    assert salt("grains.get", "secure_boot") is not None

    # Its master knows the maker of its TPM, learns this boot, and says that it is good: the host takes its word.
    group = {"name": "default", "minimum": "L4", "pcrs": PCRS}
    master = Master(tmp_path, salt, roots=str(lab.factory.roots), groups=[group])
    master("ca_init")
    assert master("enroll", "vm")["level"] == "L3"
    learned = master("learn", "vm", sign=True)
    assert learned["signed"] is True and not learned["notes"], learned
    said = "\n".join(learned["diff"])
    for rule in ("secure_boot", "dbx", "signers", "applications", "kernels", "initrds", "command_lines"):
        assert f'"{rule}"' in said, (rule, said)
    by_master = {**TPM, "verifier": "master", "verifier_keys": [one["kid"] for one in master("jwks")["keys"]]}
    salt.declare(vault("L4", **by_master))
    found = master("attest", "vm")["vm"]
    assert (found["state"], found["level"], found["enforced"]) == ("trusted", "L4", True), found
    status = salt("netspace_attestation.status")
    assert (status["level"], status["verifier"]) == ("L4", "master"), status

    # Secure Boot has the kernel measure its modules, and nothing else was asked for: that is no L5.
    learned = master("learn", "vm", ima=True)
    assert any("[ima-unmeasured]" in note for note in learned["notes"]), learned["notes"]

    learn(machine, salt)
    all_true(salt.apply(vault("L4", **TPM, references=REFERENCES)))
    assert salt("netspace_attestation.status")["level"] == "L4"
    assert machine.sh("systemctl is-active netspace-environment-vault") == "active"

    # The same boot again: the same trust, before anybody asks.
    machine.reboot()
    assert machine.sh("systemctl is-active netspace-environment-vault") == "active"
    assert salt("netspace_attestation.status")["level"] == "L4"

    # Another kernel command line: the host comes up, and what demands trust does not.
    machine.off()
    machine.command_line = image.COMMAND_LINE + " systemd.debug_shell=1"
    machine.on()
    assert machine.sh("systemctl is-active netspace-environment-plain") == "active"
    assert machine.sh("systemctl is-active netspace-environment-vault", check=False) != "active"
    assert machine.sh("systemctl is-failed netspace-restore") == "failed"
    status = salt("netspace_attestation.status")
    assert status["level"] == "L3" and "PCR 8" in status["reason"], status
    states = salt.apply(vault("L4", **TPM, references=REFERENCES))
    assert "vault" in states["netspace environments"]["comment"]
    assert states["netspace environments"]["result"] is False

    # The master says so, too, and why; what it said before the restart counts no more.
    salt.declare(vault("L4", **by_master))
    found = master("attest", "vm")["vm"]
    assert (found["state"], found["level"], found["code"]) == ("degraded", "L3", "command-line"), found
    shown = master("explain", "vm")
    assert "systemd.debug_shell=1" in shown["why"] and "allowed command line" in shown["to raise it"], shown

    # A kernel that measures programs: what this boot ran is learned, and a program that nobody knows costs the level.
    machine.off()
    machine.command_line = image.COMMAND_LINE + " ima_policy=tcb"
    machine.on()
    for _ in range(2):
        master("attest", "vm")  # what answering itself reads is in the list, too
    proposed = tmp_path / "proposed.json"
    learned = master("learn", "vm", ima=True, file=str(proposed))
    policy = json.loads(proposed.read_text())
    assert any("ima_policy=tcb" in line for line in policy["boot"]["command_lines"]), policy["boot"]["command_lines"]
    # The former line has IMA measure no programs: with it, a list would prove nothing.
    policy["boot"]["command_lines"] = [line for line in policy["boot"]["command_lines"] if "ima_policy=tcb" in line]
    # Logs and records, which root reads and programs write.
    policy["ima"].update(exclude=["/var/*", "/tmp/*", "/etc/*"], violations="ignore")
    proposed.write_text(json.dumps(policy))
    assert master("policy_set", "default", str(proposed))["version"] == learned["version"]
    found = master("attest", "vm")["vm"]
    assert (found["level"], found["code"], found["enforced"]) == ("L5", "ok", True), (found, learned["notes"])
    machine.sh("/usr/bin/sha512sum /dev/null")
    found = master("attest", "vm")["vm"]
    assert (found["level"], found["code"]) == ("L4", "ima-file") and "/usr/bin/sha512sum" in found["reason"], found
