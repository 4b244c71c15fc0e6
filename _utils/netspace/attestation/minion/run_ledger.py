"""Ledger of runs on the attested host: its setup, and its lines for a verifier."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Mapping
from typing import Any

from netspace import files
from netspace.attestation.evidence import Context
from netspace.attestation.ledger_proof import LedgerProof
from netspace.attestation.minion import attester
from netspace.attestation.tpm.device import Device, DeviceError
from netspace.attestation.tpm.tcti import device_path
from netspace.errors import NetspaceError
from netspace.layout import Layout
from netspace.ledger import entries, journal, nv_index, nv_public, setting
from netspace.ledger.setting import Setting

log = logging.getLogger(__name__)

# Seconds for all commands of the setup.
_PATIENCE = 30.0
_AUTH = 32


def set_up(layout: Layout, tpm: str | None) -> None:
    """Set up the ledger of runs, and write its first line.

    With a TPM, define the NV index that proves the ledger. An existing index is deleted, because its authorization
    value isn't known any more. The ledger's setting is saved last. So if this process is killed earlier, the next call
    defines the index again.

    :raises NetspaceError: when the TPM can't define the index.
    """
    path, auth = device_path(tpm or ""), secrets.token_bytes(_AUTH)
    files.remove(setting.path(layout))
    if path is not None:
        with journal.using(layout, path, _PATIENCE) as send:
            if nv_index.attributes(send) is not None:
                nv_index.undefine(send)
            nv_index.define(send, auth)
    journal.forget(layout)
    setting.save(layout, Setting(path, auth))
    journal.complete(layout)


def remove(layout: Layout) -> None:
    """Delete the ledger, its setting, and its NV index if the TPM answers."""
    there = _present(layout)
    files.remove(setting.path(layout))
    if journal.folder(layout).exists():
        journal.remove(layout)
    if there is not None and there.tpm is not None:
        with contextlib.suppress(nv_index.IndexFailure), journal.using(layout, there.tpm, _PATIENCE) as send:
            if nv_index.attributes(send) is not None:
                nv_index.undefine(send)


def shown(layout: Layout) -> dict[str, Any]:
    """Return the ledger's content for an operator; empty if the host keeps none.

    :raises StateError: when the ledger is damaged.
    """
    if not setting.enabled(layout):
        return {}
    state = journal.current(layout)
    return {
        "lines": state.count,
        "running": {name: {"image": run.image, "configuration": run.configuration}
                    for name, run in sorted(state.running.items())},
        "declaration": state.declared,
        "full": state.full,
    }  # fmt: skip


def _present(layout: Layout) -> Setting | None:
    """Return the setting; None if there is none, or if it is damaged."""
    with contextlib.suppress(NetspaceError):
        return setting.setting(layout)
    return None


def lines(layout: Layout, asked: Mapping[str, Any]) -> tuple[int, bytes]:
    """Return the number of the first line that a verifier lacks, and all lines from there on.

    :param asked: the boot and the number of lines that the verifier has judged.
    """
    raw = journal.content(layout)
    try:
        every = entries.split(raw)
    except entries.Unreadable:
        return 0, raw[: entries.MOST_BYTES]  # the verifier reports the error
    first = asked["first"] if every[:1] == [entries.boot(asked["boot"])] and len(every) >= asked["first"] else 0
    return first, b"".join(every[first:])


def certify(layout: Layout, asked: Mapping[str, Any]) -> attester.Certify | None:
    """Return a function that certifies the ledger; None if this host keeps none for its TPM.

    The function makes the certificate first and then reads the lines, so the lines include everything that the
    certificate covers. Errors in the index or the lines are not raised: the verifier finds them and lowers the level.
    """
    there = _completed(layout)
    if there is None or there.tpm is None:
        return None
    auth = there.auth

    def make(device: Device, key: Any, context: Context) -> LedgerProof | None:
        try:
            made = device.certify_index(key, nv_public.INDEX, nv_public.SIZE, auth, context.qualifying())
        except DeviceError as err:
            log.warning("the ledger of runs can't be certified: %s", err)
            return None
        return LedgerProof(*lines(layout, asked), *made)

    return make


def unproved(layout: Layout, asked: Mapping[str, Any]) -> LedgerProof | None:
    """Return the ledger's lines without a TPM's certificate; None if this host keeps no ledger."""
    return None if _completed(layout) is None else LedgerProof(*lines(layout, asked))


def _completed(layout: Layout) -> Setting | None:
    try:
        journal.complete(layout)
        return setting.setting(layout)
    except NetspaceError as err:
        log.warning("%s", err)
        return None
