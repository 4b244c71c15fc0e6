"""Pairwise keys of two hosts, from which the names of their shared broker objects derive.

Each host has an X25519 key (RFC 7748) in the folder of its authority, ``names.key``, which never leaves the host. Other
hosts declare the public half of this key, which is no secret, as ``broker:hosts:<h>:public_key``. Both hosts of a pair
compute the same shared secret from their own key and the other's public half; no third host can.

If a host's public half isn't declared, the secret that all hosts share (``broker:names_key``) is used instead: **each
host that has it can then compute the names of objects between two other hosts**.

Pairwise keys are stored with the names (``names``), and computed again when their source has changed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from netspace import files, x509_helpers
from netspace.errors import NetspaceError
from netspace.spec.types import LocalBroker

FILE = "names.key"
LEAST = 32  # characters of the shared secret
MAX_FILE = 4096


class PairKey(msgspec.Struct, frozen=True):
    """The key of one pair of hosts.

    :param key: the key.
    :param source: a digest of the keys and trust domains from which it was derived.
    """

    key: bytes
    source: str

    def __repr__(self) -> str:
        return f"PairKey(source={self.source!r})"


def public(folder: Path) -> str:
    """Return the public half of the X25519 key in *folder*; make the key if there is none."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    path = folder / FILE
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        files.write(path, x509_helpers.private(X25519PrivateKey.generate()).encode())
    return _public(_load(secret(path, str(path)), str(path)))


def between(broker: LocalBroker, known: Mapping[str, PairKey]) -> dict[str, PairKey]:
    """Return the pairwise keys of this host with each other declared host, by the other host's name.

    :param known: the existing keys. A key is computed again only if its source has changed.
    :raises NetspaceError: a key or secret from which they derive can't be read or used.
    """
    own: bytes | None = None
    shared: bytes | None = None
    made = {}
    for name, host in sorted(broker.hosts.items()):
        domains = " ".join(sorted((str(broker.trust_domain), host.trust_domain)))
        if host.public_key is not None:
            own = own or _own(broker)
            raw, told = own, host.public_key
        else:
            shared = shared or given(broker.names_key)
            raw, told = shared, ""
        source = hashlib.sha256(b"\0".join((raw, told.encode(), domains.encode()))).hexdigest()
        pair = known.get(name)
        if pair is None or pair.source != source:
            common = _agreed(raw, host.public_key, broker, name) if host.public_key else raw
            pair = PairKey(hmac.digest(common, f"netspace names between {domains}".encode(), "sha256"), source)
        made[name] = pair
    return made


def given(path: str | None) -> bytes:
    """Return the secret that hosts share (``broker:names_key``).

    :raises NetspaceError: it is missing, too short, or can't be read.
    """
    where = f"broker:names_key: {path}"
    if path is None:
        raise NetspaceError("broker:names_key is missing, and so is the public_key of a host of broker:hosts")
    found = secret(Path(path), where).strip()
    if len(found) < LEAST:
        raise NetspaceError(f"{where}: expected {LEAST} random characters or more")
    return found


def secret(path: Path, where: str) -> bytes:
    """Return the content of a file that only its owner may access, up to ``MAX_FILE`` bytes.

    :param where: the file's name for errors.
    :raises NetspaceError: other users have permissions on the file, or it can't be read.
    """
    try:
        with open(path, "rb") as stream:
            if os.fstat(stream.fileno()).st_mode & 0o077:
                raise NetspaceError(f"{where}: other users can read it; chmod go= it")
            return stream.read(MAX_FILE)
    except OSError as err:
        raise NetspaceError(f"{where}: {err.strerror}") from err


def _own(broker: LocalBroker) -> bytes:
    path = Path(str(broker.authority)) / FILE
    try:
        return secret(path, str(path))
    except NetspaceError as err:
        raise NetspaceError(
            f"{err}; `netspace_link.public_key` prints this host's key, and makes it if it is missing"
        ) from err


def _agreed(raw: bytes, theirs: str, broker: LocalBroker, name: str) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    where = f"broker:hosts:{name}:public_key"
    key = _load(raw, f"{broker.authority}/{FILE}")
    if theirs == _public(key):
        raise NetspaceError(f"{where}: this is our own key; use what `netspace_link.public_key` prints on {name}")
    try:
        common: bytes = key.exchange(X25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(theirs + "=")))
    except ValueError as err:
        raise NetspaceError(
            f"{where}: {theirs!r} is not a key; use what `netspace_link.public_key` prints on {name}"
        ) from err
    return common


def _load(raw: bytes, where: str) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(raw, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as err:  # the error must not contain the key
        raise NetspaceError(f"{where}: {type(err).__name__}: it holds no key; remove it to have a new one") from err
    if not isinstance(key, X25519PrivateKey):
        raise NetspaceError(f"{where}: it holds a key of another kind; remove it to have a new one")
    return key


def _public(key: Any) -> str:
    return base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).decode().rstrip("=")
