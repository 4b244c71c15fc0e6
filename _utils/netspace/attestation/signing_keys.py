"""Files of signing keys on P-256: the key in PEM, or a reference to a key in a hardware security module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from netspace.attestation import hsm
from netspace.errors import NetspaceError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey


def private_bytes(key: EllipticCurvePrivateKey) -> bytes:
    """Return the content of a key's file: the key (PEM), or a reference to a key in a hardware security module."""
    from cryptography.hazmat.primitives import serialization

    return hsm.reference(key) or key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def private_key(raw: bytes, module: hsm.Module | None, path: Path) -> EllipticCurvePrivateKey:
    """Parse the content of a key's file, which :func:`private_bytes` made.

    :param path: the file, for error messages.
    :raises NetspaceError: when the key can't be used. The message doesn't contain the key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if raw.startswith(hsm.PREFIX):
        return hsm.opened(raw, module, path)
    try:
        key = load_pem_private_key(raw, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise NetspaceError(f"{path}: no key that can be used: {type(err).__name__}") from err
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise NetspaceError(f"{path}: not a key on P-256")
    return key
