"""Settings of an appraisal: a part of the declaration, and a fingerprint of the files that it names.

Every run compares these settings with those of the last appraisal; a change demands a new appraisal. Most runs only
compare, so this module imports neither the TPM's library, nor ``cryptography``, nor the verifier.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netspace.attestation.tpm.tcti import device_path
from netspace.layout import Layout

if TYPE_CHECKING:
    from netspace.spec.types import Attestation

MASTER = "master"
ASK = "let the master ask: salt-run netspace_attestation.attest <this minion>"


def of(declared: Attestation) -> dict[str, Any]:
    """Return the settings on which an appraisal depends, in the form in which results record them."""
    return {
        "policy": declared.policy,
        "tpm": declared.tpm,
        "roots": declared.roots,
        "references": declared.references,
        "pcrs": sorted(set(declared.pcrs)),
        "verifier": declared.verifier,
        "verifier_keys": sorted(set(declared.verifier_keys)),
    }


def sources(layout: Layout, chosen: Mapping[str, Any]) -> str:
    """Return a fingerprint of the names, sizes and times of the files that settings name, without reading the files.

    For example, the fingerprint changes when a root certificate is added or a TPM device appears.

    :param chosen: settings from :func:`of`.
    """
    seen: list[Any] = []
    device = device_path(str(chosen.get("tpm") or ""))
    seen.append(device is not None and device.exists())
    for key in ("roots", "references"):
        named = chosen.get(key)
        seen.append(_stamps(Path(str(named))) if named else None)
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:32]


def _stamps(path: Path) -> list[tuple[str, int, int]]:
    try:
        if not path.is_dir():
            info = path.stat()
            return [("", info.st_size, info.st_mtime_ns)]
        with os.scandir(path) as entries:
            found = [(entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in entries]
    except OSError as err:
        return [(type(err).__name__, 0, 0)]
    return sorted(found)
