"""The host's key that signs statements about the key of environments' tokens (``environment_token``).

A host with a TPM uses the TPM's attestation key: the TPM quotes the PCRs that the declaration names, with the statement
as qualifying data. A host without a TPM uses its software key. The attestation key is the one without a period: it
never changes, so a relying party can pin it.
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
    """Return the settings of the last appraisal, which name the TPM; if there was none, ``{"tpm": None}``.

    :raises StateError: when the recorded result is damaged.
    """
    last = result.load(layout)
    return {"tpm": None} if last is None else last.settings


def vouch(layout: Layout, chosen: Mapping[str, Any], said: bytes) -> str:
    """Sign the statement in *said* with the host's key; return statement and signature as one message.

    :param chosen: from :func:`settings`.
    :raises NetspaceError: when a TPM is configured, but can't be used. The software key is not used in its place.
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
    """Return the host's public key (PEM) for relying parties to pin: ``{kind, key}``.

    :raises NetspaceError: when a TPM is configured, but can't be used.
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
