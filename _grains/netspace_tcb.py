"""Trusted computing base below this host's kernel
===============================================

Grain ``netspace_tcb``: microcode, firmware, UEFI variables, management controller (BMC), IOMMU, Thunderbolt, USB,
lockdown, and the firmware of network cards and disks. The kernel's files show them; no process is started. Root sees
more than other users.

A host's grains are its own unverified claims: they never raise its trust level.
"""

from __future__ import annotations

from typing import Any

import netspace

netspace.refresh(__file__)

from netspace.attestation.tcb import facts  # noqa: E402


def netspace_tcb() -> dict[str, Any]:
    """
    Return the grain; see ``netspace.attestation.tcb.facts``.

    CLI Example:

    .. code-block:: bash

        salt '*' grains.item netspace_tcb
    """
    return {"netspace_tcb": facts.facts()}
