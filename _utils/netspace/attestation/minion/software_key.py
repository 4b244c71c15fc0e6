"""Software key of a host without a TPM: Ed25519, in a file that only root can read.

The key proves only that the same installation answers: anybody who can read the file can impersonate the host. The key
is bound to the machine id, so a clone of the disk with another machine id makes a new key.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from netspace import files
from netspace.errors import StateError
from netspace.layout import Layout

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_SIZE = 32  # bytes of a secret key
_AGAIN = "remove the file and apply again to make a new one"


@dataclass(frozen=True)
class Key:
    """An Ed25519 key: the 32 public bytes, and the private key for signing."""

    public: bytes
    _private: Ed25519PrivateKey

    def sign(self, message: bytes) -> bytes:
        return self._private.sign(message)

    def __repr__(self) -> str:
        return f"Key({self.public.hex()})"


def host_id(layout: Layout) -> str:
    """Return this host's id: a keyed hash of the machine id, which itself must stay secret.

    ``sd_id128_get_machine_app_specific(3)`` recommends this.
    """
    try:
        machine = (layout.root / "etc/machine-id").read_bytes().strip()
    except OSError:
        machine = b""
    return hmac.digest(machine, b"netspace host\0" + layout.instance.encode(), "sha256").hex()[:32]


def kept(layout: Layout, file: str, make: Callable[[], bytes], *, field: str = "key", remedy: str = _AGAIN) -> bytes:
    """Return the 32 bytes of a secret key in a file. Make a new key if there is none, or if it is another machine's.

    :param file: the file's name, among the records of attestation.
    :param make: returns a new key.
    :param field: the key's name in the file.
    :param remedy: what to do about a damaged file.
    :raises StateError: when the file is damaged.
    """
    path = layout.records("attestation") / file
    record, host = files.read_json(path), host_id(layout)
    if record is None or record.get("host") != host:
        raw = make()
        files.write_json(path, {"v": 1, "host": host, field: base64.b64encode(raw).decode()})
        return raw
    try:
        raw = base64.b64decode(record[field], validate=True)
    except (KeyError, TypeError, ValueError):
        raw = b""
    if len(raw) != _SIZE:
        # The message leaves out the value, which may be most of a key.
        raise StateError(f"{path}: not a key; {remedy}")
    return raw


def load(layout: Layout) -> Key:
    """Return this host's key. If the host has no key, or a key bound to another machine id, make a new key.

    :raises StateError: when the file is damaged.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    raw = kept(layout, "key.json", lambda: Ed25519PrivateKey.generate().private_bytes_raw(), field="seed")
    private = Ed25519PrivateKey.from_private_bytes(raw)
    return Key(private.public_key().public_bytes_raw(), private)


def fingerprint(public: bytes) -> str:
    """Return the SHA-256 of the public key, in hex."""
    return hashlib.sha256(public).hexdigest()
