"""Host's key that vouches for the key of environments' tokens: its TPM's own attestation key, or its software key.

The TPM quotes the PCRs that the declaration names, with the statement as qualifying data. The attestation key is the
host's own one (of no period), which never changes: a relying party pins it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netspace.attestation import environment_token, result
from netspace.attestation.minion import self_appraisal, software_key
from netspace.attestation.tpm import device as tpm
from netspace.attestation.tpm import structures
from netspace.layout import Layout


def settings(layout: Layout) -> Mapping[str, Any]:
    """Return the settings of the last appraisal, which name the TPM; without an appraisal, there is none.

    :raises StateError: the recorded result is damaged.
    """
    last = result.load(layout)
    return {"tpm": None} if last is None else last.settings


def vouch(layout: Layout, chosen: Mapping[str, Any], said: bytes) -> str:
    """Return the message by which this host vouches for the statement *said*.

    :param chosen: from :func:`settings`.
    :raises NetspaceError: a TPM is configured, but can't be used. No software key takes its place.
    """
    if chosen.get("tpm") is None:
        signature = software_key.load(layout).sign(environment_token.PREFIX + said)
        return environment_token.vouched("software", said, b"", signature, {})

    def quoted(device: tpm.Device) -> str:
        with device.attestation_key() as (key, _):
            attest, signature, pcrs = device.quote(key, environment_token.qualifying(said), chosen["pcrs"])
        return environment_token.vouched("tpm", said, attest, signature, pcrs)

    return tpm.run(chosen["tpm"], quoted, lock=self_appraisal.lock_path(layout))


def public(layout: Layout, chosen: Mapping[str, Any]) -> dict[str, str]:
    """Return ``{kind, key}``: the public key (PEM) for relying parties to pin.

    :raises NetspaceError: a TPM is configured, but can't be used.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    def pem(key: Any) -> str:
        return str(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())

    if chosen.get("tpm") is None:
        return {"kind": "software", "key": pem(Ed25519PublicKey.from_public_bytes(software_key.load(layout).public))}

    def read(device: tpm.Device) -> bytes:
        with device.attestation_key() as (_, raw):
            return bytes(raw)

    raw = tpm.run(chosen["tpm"], read, lock=self_appraisal.lock_path(layout))
    return {"kind": environment_token.CLAIMED, "key": pem(structures.public(raw).key())}
