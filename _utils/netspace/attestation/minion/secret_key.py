"""The host's key for secrets: others encrypt secrets to its public part, and the host opens them with the private part.

A host with a TPM uses two keys of the TPM: its endorsement key and an anchor. So a copy of the disk in another machine
can't open secrets. A host without a TPM uses an X25519 key in a file that only root can read. Anybody who has a copy of
the disk can read this file, so a secret that demands ``L2`` or more is never encrypted to such a key.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from netspace.attestation import sealed_value
from netspace.attestation.minion import self_appraisal, software_key
from netspace.attestation.sealed_value import Place, Recipient, SealedError
from netspace.attestation.tpm import device as tpm
from netspace.errors import MissingError, StateError
from netspace.layout import Layout

LEAST_OF_TPM = "L2"
"""A secret that demands this trust level or a higher one must be encrypted to a TPM."""


def recipient(layout: Layout, chosen: Mapping[str, Any]) -> Recipient:
    """Return this host's public key for secrets.

    :param chosen: the settings of the last appraisal (``host_key.settings``), which name the TPM.
    :raises NetspaceError: when a TPM is configured, but can't be used. The software key is not used in its place.
    """
    if chosen.get("tpm") is None:
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        public = X25519PrivateKey.from_private_bytes(_private(layout)).public_key().public_bytes_raw()
        return Recipient("software", key=_b64(public))

    def read(device: tpm.Device) -> Recipient:
        endorsement = device.endorsement()
        with device.anchor() as (_, anchor):
            return Recipient(
                "tpm",
                template=endorsement.template,
                endorsement=_b64(endorsement.public),
                anchor=_b64(anchor),
            )

    return tpm.run(chosen["tpm"], read, lock=self_appraisal.lock_path(layout))


def open_all(
    layout: Layout, chosen: Mapping[str, Any], wanted: Mapping[Place, str]
) -> tuple[dict[Place, bytes], dict[Place, str]]:
    """Open ciphertexts. Return the secrets, and an error for each ciphertext that can't be opened, both by place.

    :param chosen: as for :func:`recipient`.
    :param wanted: the ciphertexts, which need not be trusted, by the place that each is for.
    """
    found: dict[Place, bytes] = {}
    errors: dict[Place, str] = {}
    to_tpm: dict[Place, sealed_value.Sealed] = {}
    private = b""
    for place, text in wanted.items():
        try:
            sealed = sealed_value.read(text)
            if sealed.kind == "software" and int(place.minimum[1:]) >= int(LEAST_OF_TPM[1:]):
                raise SealedError(f"it demands {place.minimum}, but is encrypted to a software key")
            if sealed.kind == "tpm":
                to_tpm[place] = sealed
                continue
            private = private or _private(layout)
            content_key = sealed_value.agreed(private, sealed_value.decoded(sealed.share))
            found[place] = sealed_value.opened(sealed, content_key, place)
        except (SealedError, StateError, ValueError) as err:
            errors[place] = str(err)
    if to_tpm and chosen.get("tpm") is None:
        errors.update(dict.fromkeys(to_tpm, "it is encrypted to a TPM, but this host was appraised without a TPM"))
    elif to_tpm:
        _by_tpm(layout, str(chosen["tpm"]), to_tpm, found, errors)
    return found, errors


def _by_tpm(
    layout: Layout,
    tcti: str,
    wanted: Mapping[Place, sealed_value.Sealed],
    found: dict[Place, bytes],
    errors: dict[Place, str],
) -> None:
    def activate(device: tpm.Device) -> None:
        with device.anchor() as (anchor, _):
            for place, sealed in wanted.items():
                held, share = sealed_value.decoded(sealed.credential), sealed_value.decoded(sealed.share)
                try:
                    content_key = device.activated(anchor, sealed.template, held, share)
                    found[place] = sealed_value.opened(sealed, content_key, place)
                except (tpm.DeviceError, SealedError, ValueError) as err:
                    errors[place] = str(err)

    try:
        tpm.run(tcti, activate, lock=self_appraisal.lock_path(layout))
    except (tpm.DeviceError, MissingError) as err:  # secrets for the software key are open already
        for place in wanted.keys() - found.keys() - errors.keys():
            errors[place] = str(err)


def _private(layout: Layout) -> bytes:
    """Return the software key. Make a new key if there is none, or if the key belongs to another machine.

    :raises StateError: when the file is damaged.
    """
    return software_key.kept(layout, "secret-key.json", _made)


def _made() -> bytes:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.generate().private_bytes_raw()


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
