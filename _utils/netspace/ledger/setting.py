"""Setting of the ledger of runs: ``ledger.json`` among attestation's records. Without this file there is no ledger."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from netspace import files
from netspace.errors import StateError
from netspace.layout import Layout


@dataclass(frozen=True)
class Setting:
    """Setting of a ledger.

    :param tpm: device or socket of the TPM; None: the host has none, and only its software key vouches for the ledger.
    :param auth: authorization value of the index; a secret.
    """

    tpm: Path | None
    auth: bytes


def path(layout: Layout) -> Path:
    return layout.records("attestation") / "ledger.json"


def enabled(layout: Layout) -> bool:
    """Return whether this host keeps a ledger."""
    return os.path.exists(path(layout))


def setting(layout: Layout) -> Setting | None:
    """Return the ledger's setting; None if this host keeps no ledger.

    :raises StateError: when the file is damaged.
    """
    record = files.read_json(path(layout))
    if record is None:
        return None
    try:
        return Setting(None if record["tpm"] is None else Path(record["tpm"]), bytes.fromhex(record["auth"]))
    except (KeyError, TypeError, ValueError) as err:
        raise StateError(f"{path(layout)}: damaged; remove the file and apply again") from err


def save(layout: Layout, chosen: Setting) -> None:
    record = {"v": 1, "tpm": None if chosen.tpm is None else str(chosen.tpm), "auth": chosen.auth.hex()}
    files.write_json(path(layout), record)
