"""Ciphertext of a secret that one host alone can open: its form, its strict reader, and encryption to a host. Pure.

A *recipient* is a host's public key for secrets. There are two kinds:

- ``software``: an X25519 key in a file of the host. Anybody who can read that file can open the secret.
- ``tpm``: a TPM's endorsement key, and an *anchor*: a key that the TPM derives and that can't leave the TPM. A
  credential (TPM2_MakeCredential) for both keys has the content key. So only this TPM can open the secret. Nobody needs
  to trust the anchor in a recipient: no TPM can open a secret for a false anchor.

AES-256-GCM encrypts the secret with a new key, the *content key*. It also authenticates the *place* that the secret is
for: host, environment, name and trust level. So a ciphertext that was copied to another place can't be opened.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from netspace.attestation.refusals import Malformed
from netspace.attestation.tpm import credential, structures
from netspace.errors import NetspaceError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MOST = 48 * 1024
"""Maximum length of a ciphertext, in characters."""
MOST_RECIPIENT = 8 * 1024
_CONTENT_KEY = 32
_NONCE = bytes(12)
"""The nonce, which may be constant because each content key encrypts only one text."""
_LABEL = b"netspace-secret/1"


class SealedError(NetspaceError):
    """Error: a ciphertext or a recipient is malformed, or isn't for this host or this place."""


class Recipient(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A host's public key for secrets. Its bytes are in base64.

    :param key: ``software``: the X25519 key.
    :param template: ``tpm``: the name of the endorsement key's template.
    :param endorsement: ``tpm``: the endorsement key (TPMT_PUBLIC).
    :param anchor: ``tpm``: the anchor (TPMT_PUBLIC).
    """

    kind: Literal["software", "tpm"]
    key: str = ""
    template: str = ""
    endorsement: str = ""
    anchor: str = ""
    version: Literal[1] = 1

    @property
    def text(self) -> str:
        """The recipient as JSON."""
        return msgspec.json.encode(self).decode()


class Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A ciphertext. Its bytes are in base64.

    :param to: a digest of the recipient.
    :param share: ``software``: the sender's share of the key agreement; ``tpm``: TPM2B_ENCRYPTED_SECRET's content.
    :param credential: ``tpm``: TPM2B_ID_OBJECT's content.
    :param template: ``tpm``: the name of the endorsement key's template.
    :param text: the encrypted secret.
    """

    kind: Literal["software", "tpm"]
    to: str
    share: str
    text: str
    credential: str = ""
    template: str = ""
    version: Literal[1] = 1

    @property
    def encoded(self) -> str:
        """The ciphertext as JSON."""
        return msgspec.json.encode(self).decode()


class Place(NamedTuple):
    """The place that a secret is for.

    :param host: the minion's id; empty if the host itself encrypts the secret.
    :param name: the secret's name.
    :param minimum: the lowest trust level at which the host opens the secret, such as ``L2``.
    """

    host: str
    environment: str
    name: str
    minimum: str

    @property
    def context(self) -> bytes:
        """Host, environment, name and minimum as bytes; two different places never have the same bytes."""
        parts = [_LABEL, *(part.encode() for part in self)]
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def recipient(text: object) -> Recipient:
    """Parse a recipient in an untrusted text.

    :raises SealedError: when *text* is not a recipient.
    """
    if not isinstance(text, str) or len(text) > MOST_RECIPIENT:
        raise SealedError(f"key for secrets: expected a text of at most {MOST_RECIPIENT} characters")
    try:
        found = msgspec.json.decode(text, type=Recipient)
        if found.kind == "software":
            if len(decoded(found.key)) != 32 or found.template or found.endorsement or found.anchor:
                raise ValueError("kind software: expected an X25519 key and no other field")
        else:
            if found.key:
                raise ValueError("kind tpm: expected no software key")
            _keys(found)
    except (ValueError, RecursionError, Malformed) as err:
        raise SealedError(f"key for secrets: {err}") from err
    return found


def read(text: object) -> Sealed:
    """Parse a ciphertext in an untrusted text.

    :raises SealedError: when *text* is not a ciphertext.
    """
    if not isinstance(text, str) or len(text) > MOST:
        raise SealedError(f"ciphertext: expected a text of at most {MOST} characters")
    try:
        found = msgspec.json.decode(text, type=Sealed)
        for part in (found.share, found.text, found.credential):
            decoded(part)
    except (ValueError, RecursionError) as err:
        raise SealedError(f"ciphertext: {err}") from err
    return found


def seal(to: Recipient, place: Place, plain: bytes) -> str:
    """Encrypt *plain* so that only the host of *to* can open it, and only for *place*.

    :raises SealedError: when the recipient's key can't be used.
    """
    content_key, share, held = secrets.token_bytes(_CONTENT_KEY), b"", b""
    if to.kind == "software":
        share, content_key = _agreed(decoded(to.key))
    else:
        try:
            endorsement, anchor = _keys(to)
            held, share = credential.make(endorsement, anchor.name, content_key)
        except Malformed as err:
            raise SealedError(f"key for secrets: {err}") from err
    text = _aead(content_key).encrypt(_NONCE, plain, place.context)
    return Sealed(to.kind, digest(to), _b64(share), _b64(text), _b64(held), to.template).encoded


def opened(sealed: Sealed, content_key: bytes, place: Place) -> bytes:
    """Decrypt a ciphertext with its content key.

    :raises SealedError: when the ciphertext is for another place, or was changed.
    """
    from cryptography.exceptions import InvalidTag

    try:
        return _aead(content_key).decrypt(_NONCE, decoded(sealed.text), place.context)
    except (InvalidTag, ValueError) as err:
        raise SealedError("the ciphertext was made for another place, or was changed") from err


def agreed(private: bytes, share: bytes) -> bytes:
    """Return the content key of a ciphertext that was encrypted to a software key.

    :param private: the private software key (X25519).
    :param share: the ciphertext's *share*: the sender's public key.
    :raises SealedError: when *share* is not a valid key.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    key = X25519PrivateKey.from_private_bytes(private)
    try:
        shared = key.exchange(X25519PublicKey.from_public_bytes(share))
    except ValueError as err:
        raise SealedError("ciphertext: its share is not a valid key") from err
    return _derived(shared, share, key.public_key().public_bytes_raw())


def digest(to: Recipient) -> str:
    """Return a digest of a recipient."""
    return hashlib.sha256(to.text.encode()).hexdigest()[:32]


def decoded(text: str) -> bytes:
    """Return the bytes of a text in base64.

    :raises ValueError: when *text* is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as err:
        raise ValueError("not base64") from err


def _keys(to: Recipient) -> tuple[structures.Public, structures.Public]:
    """Return the endorsement key and the anchor of a TPM's recipient.

    :raises Malformed: when a key is malformed, or is of the wrong kind.
    """
    endorsement = structures.endorsement(decoded(to.endorsement))
    anchor = structures.public(decoded(to.anchor))
    endorsement.key()
    required = structures.FIXED_TPM | structures.FIXED_PARENT | structures.SENSITIVE_DATA_ORIGIN
    if anchor.attributes & required != required:
        raise Malformed(f"the anchor's attributes {anchor.attributes:08x} let it leave its TPM")
    return endorsement, anchor


def _agreed(theirs: bytes) -> tuple[bytes, bytes]:
    """Return a new share, and the content key that the owner of the key *theirs* derives from it."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    ours = X25519PrivateKey.generate()
    share = ours.public_key().public_bytes_raw()
    try:
        shared = ours.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError as err:  # a point of a small order
        raise SealedError("key for secrets: not a valid X25519 key") from err
    return share, _derived(shared, share, theirs)


def _derived(shared: bytes, share: bytes, theirs: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), _CONTENT_KEY, share + theirs, _LABEL).derive(shared)


def _aead(key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    if len(key) != _CONTENT_KEY:
        raise ValueError("not a content key")
    return AESGCM(key)


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
