"""Trust of virtual machines that lack something: a TPM without a boot log stops at L3, no TPM at L1."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.hosts.whole_host import all_true
from vmlab.lab import Salt
from vmlab.machine import Machine
from vmlab.trust import REFERENCES, TPM, learn, vault

pytestmark = pytest.mark.vm


def test_a_tpm_without_a_log_stops_at_l3(clone: Callable[[str], Machine]) -> None:
    machine = clone("unlogged")
    salt = Salt(machine)
    salt.apply(vault("L3", **TPM))
    learn(machine, salt)
    all_true(salt.apply(vault("L3", **TPM, references=REFERENCES)))
    status = salt("netspace_attestation.status")
    assert status["level"] == "L3" and "log" in status["reason"], status
    assert machine.sh("systemctl is-active netspace-environment-vault") == "active"


def test_without_a_tpm_a_host_has_l1(plain: Machine, salt: Salt) -> None:
    states = salt.apply(vault("L2", policy="prefer", minimum="L3", tpm="device:/dev/tpmrm0"))
    assert "vault" in states["netspace environments"]["comment"]
    assert salt("netspace_attestation.status")["level"] == "L1"
    assert plain.sh("systemctl is-active netspace-environment-plain") == "active"
    assert plain.sh("systemctl is-active netspace-environment-vault", check=False) != "active"
