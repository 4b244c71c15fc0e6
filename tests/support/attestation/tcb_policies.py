"""Policies with terms for what lies below the kernel, which the recorded boots satisfy."""

from __future__ import annotations

from typing import Any

from netspace.attestation.logs import events
from netspace.attestation.logs.eventlog import NO_ACTION, EventLog
from netspace.attestation.verifier import tcb_rules
from netspace.attestation.verifier.extensions import Extension
from support.attestation import boot_forge, boot_logs

VERSION = "2025.02-8+deb13u1"
SPOKEN = f"{boot_forge.LINE} lockdown=integrity usbcore.authorized_default=0"


def platform(log: EventLog) -> list[str]:
    """Return the digests in PCR 1 that a policy for this boot has to list."""
    told = [one for one in log.events if one.pcr == 1 and one.type != NO_ACTION]
    return [one.hex() for one in tcb_rules.unlisted([Extension(one.digests["sha256"], one) for one in told])]


def policy(boot: str, terms: dict[str, Any], **rules: Any) -> dict[str, Any]:
    """Return a policy with *terms* that the recorded boot satisfies, if they are proved."""
    found = boot_forge.policy(boot, **rules)
    values = boot_logs.values(boot)
    found["boot"]["unchecked"] = [one for one in found["boot"]["unchecked"] if one not in (0, 1)]
    found["boot"]["pcrs"] = {"0": [values[0].hex()], **found["boot"].get("pcrs", {})}
    if "network_boot" not in terms:
        found["boot"]["unchecked"].append(1)
    return {**found, "tcb": terms}


def network_boot(boot: str) -> dict[str, Any]:
    return {"network_boot": "never", "platform": platform(boot_forge.log(boot))}


def version(log: EventLog) -> int:
    """Return the index of the firmware's version among a log's events."""
    return next(at for at, one in enumerate(log.events) if one.type == events.CRTM_VERSION)
