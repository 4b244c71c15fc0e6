"""Abilities of this host
======================

Grains ``tpm``, ``secure_boot``, ``measured_boot``, ``ima``, ``tee`` and ``netspace``, read from the kernel's files. The
kernel does not show the manufacturer and firmware of a TPM 2.0. So the grain ``tpm`` takes these two values from the
last appraisal, and lacks them before the first appraisal.

A host's grains are its own unverified claims: they never raise its trust level.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import netspace

netspace.refresh(__file__)

from netspace.attestation import result  # noqa: E402
from netspace.attestation.minion import host_facts  # noqa: E402
from netspace.errors import NetspaceError  # noqa: E402
from netspace.layout import INSTANCE, Layout  # noqa: E402

if TYPE_CHECKING:
    __opts__: dict[str, Any]


def netspace_facts() -> dict[str, Any]:
    """
    Return the grains; see ``netspace.attestation.minion.host_facts``.

    CLI Example:

    .. code-block:: bash

        salt '*' grains.item tpm secure_boot measured_boot ima tee netspace
    """
    grains = host_facts.facts()
    tpm = grains["tpm"]
    instance = str(__opts__.get("netspace.instance", "netspace"))
    if tpm["present"] and INSTANCE.fullmatch(instance):
        try:
            last = result.load(Layout(instance))
        except (NetspaceError, OSError):
            last = None
        if last is not None and str(last.settings.get("tpm")).startswith("device:"):
            for key in ("manufacturer", "firmware"):
                tpm[key] = tpm[key] or last.tpm.get(key)
    return grains
