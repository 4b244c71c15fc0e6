"""Declarations and references for tests of a machine's trust level."""

from __future__ import annotations

import json
from typing import Any

from vmlab.lab import ROOTS, STAY, Salt, environment
from vmlab.machine import Machine

REFERENCES = "/etc/netspace-references.json"
# GRUB measures its commands and the command line into 8, what it reads into 9. Rules for kernels rest on 11 and
# 12, too, which nothing measures into here.
PCRS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12]
TPM = {"policy": "prefer", "minimum": "L3", "tpm": "device:/dev/tpmrm0", "roots": ROOTS, "pcrs": PCRS}


def vault(level: str, **attestation: Any) -> dict[str, Any]:
    common = environment(STAY, restart="on-failure")
    return {
        "attestation": attestation,
        "environments": {
            "plain": common,
            "vault": {**common, "attestation": {"policy": "require", "minimum": level}},
        },
    }


def learn(machine: Machine, salt: Salt) -> None:
    """Accept this boot's measurements as good."""
    evidence = salt("netspace_attestation.evidence", "ab" * 32)
    values = {pcr: [value] for pcr, value in evidence["pcrs"].items()}
    machine.put(REFERENCES, json.dumps({"sha256": values}))
