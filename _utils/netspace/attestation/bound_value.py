"""Values that a program sealed, and keys that sign for a program: what each is bound to, and their forms. Pure.

A host derives each key from a key that never leaves its *holder*: the host's TPM, a token (PKCS #11), or a file. The
derivation takes in everything that the value is bound to, so any other value gives another key:

==============  ======================================================================================================
what            by what
==============  ======================================================================================================
the host        the holder's own key, and the host's id
environment     its name
image           the digest of its image, if the program asked for that
boot policy     the values of the PCRs that the declaration names, if the program asked for that. The TPM itself
                enforces it (TPM2_PolicyPCR); the other holders can't
==============  ======================================================================================================

A sealed value is base64url of a head (JSON), a zero byte, and the text by AES-256-GCM. Nobody needs to trust the head:
a changed head gives another key.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import msgspec

from netspace import jose
from netspace.errors import NetspaceError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

Holder = Literal["file", "token", "tpm"]
HOLDERS: tuple[Holder, ...] = ("file", "token", "tpm")
"""The holders of keys, the weakest first."""
MOST = 4096
"""The most bytes of a value."""
MOST_SEALED = 8192
"""The most characters of a sealed value."""
_LABEL = b"netspace-program/1"
_NONCE = bytes(12)
"""The nonce, which may be constant because each key encrypts only one text: a head has a new salt."""
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""The order of the curve P-256 (FIPS 186-5)."""


class BoundError(NetspaceError):
    """Error: a sealed value is malformed, or was sealed for something else than what asks now."""


class TooWeak(NetspaceError):
    """Error: the host's holder of keys is weaker than a program accepts."""


class Boot(NamedTuple):
    """The measurements of a boot in a TPM.

    :param pcrs: the PCRs that count.
    :param digest: SHA-256 of their values, in hex.
    """

    pcrs: tuple[int, ...]
    digest: str


class Asker(NamedTuple):
    """The program that asks, as its host knows it.

    :param host: the host's id.
    :param environment: the environment's name.
    :param image: the digest of its image.
    """

    host: str
    environment: str
    image: str

    def context(self, use: Literal["seal", "sign"], image: bool) -> bytes:
        """Return the things to which a key is bound, as bytes. Different things never give the same bytes.

        :param image: whether it is bound to the image.
        """
        parts = [_LABEL, *(part.encode() for part in (use, self.host, self.environment, self.image if image else ""))]
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The head of a sealed value.

    :param kept_in: the holder of the key from which the value's key is derived.
    :param image: whether the value is bound to the image.
    :param salt: random, so that each value has a key of its own.
    :param pcrs: the PCRs to whose values the value is bound; empty: it is bound to no boot policy.
    """

    kept_in: Holder
    image: bool
    salt: Annotated[str, msgspec.Meta(min_length=32, max_length=32)]
    pcrs: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, le=23)], ...], msgspec.Meta(max_length=24)] = ()
    boot: Annotated[str, msgspec.Meta(pattern=r"^(?:[0-9a-f]{64})?$(?!\n)")] = ""
    v: Literal[1] = 1

    @property
    def bound(self) -> Boot | None:
        """The boot policy to which the value is bound; None: none."""
        return Boot(self.pcrs, self.boot) if self.pcrs else None


def head(kept_in: Holder, image: bool, boot: Boot | None) -> Head:
    """Return a new head."""
    salt = secrets.token_hex(16)
    return Head(kept_in, image, salt) if boot is None else Head(kept_in, image, salt, boot.pcrs, boot.digest)


def material(asker: Asker, about: Head) -> bytes:
    """Return the 32 bytes from which a holder derives the key of a sealed value."""
    return hashlib.sha256(asker.context("seal", about.image) + msgspec.json.encode(about)).digest()


def sealed(about: Head, key: bytes, plain: bytes) -> str:
    """Return the sealed value."""
    raw = msgspec.json.encode(about) + b"\0" + _aead(key).encrypt(_NONCE, plain, None)
    return jose.text(raw)


def read(text: str) -> tuple[Head, bytes]:
    """Return the head and the encrypted text of a sealed value, which need not be trusted.

    :raises BoundError: when *text* is not a sealed value.
    """
    try:
        if len(text) > MOST_SEALED:
            raise ValueError(f"more than {MOST_SEALED} characters")
        about, _, body = jose.octets(text, "sealed").partition(b"\0")
        return msgspec.json.decode(about, type=Head), body
    except (jose.Unreadable, ValueError, RecursionError) as err:
        raise BoundError("this isn't a sealed value; pass it on as seal returned it") from err


def opened(key: bytes, body: bytes) -> bytes:
    """Decrypt the text of a sealed value.

    :raises BoundError: when the text was encrypted with another key.
    """
    from cryptography.exceptions import InvalidTag

    try:
        return _aead(key).decrypt(_NONCE, body, None)
    except (InvalidTag, ValueError) as err:
        raise BoundError("it was sealed for another environment or image, on another host, or was changed") from err


def private_key(secret: bytes) -> EllipticCurvePrivateKey:
    """Return the key on P-256 that a holder without such keys derives.

    :param secret: 32 bytes that only the holder can compute.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

    # 16 bytes more than the order has, so that no number is likelier than another (FIPS 186-5, A.2.1).
    number = int.from_bytes(HKDFExpand(SHA256(), 48, _LABEL + b" scalar").derive(secret), "big")
    return ec.derive_private_key(number % (_ORDER - 1) + 1, ec.SECP256R1())


def _aead(key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    if len(key) != 32:
        raise ValueError("not a key")
    return AESGCM(key)
