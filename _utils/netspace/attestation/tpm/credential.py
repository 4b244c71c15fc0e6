"""MakeCredential in software: encrypts a secret that only one TPM with one attestation key can open.

Opening the credential (TPM2_ActivateCredential) proves that the attestation key and the endorsement key are in one TPM.
This module needs no TPM and no libtss2, and saves nothing.

Source: TPM 2.0 Library specification, Part 1: section 24 (credential protection), annexes B.10 and C.6 (sharing a
secret with an RSA or ECC key) and 11.4.10 (KDFa, KDFe).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING, cast

from netspace.attestation.refusals import Malformed
from netspace.attestation.tpm.structures import ECC, HASHES, Public, hash_algorithm

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

_LABEL = b"IDENTITY\0"


def make(endorsement: Public, name: bytes, secret: bytes) -> tuple[bytes, bytes]:
    """Encrypt *secret* for the TPM of *endorsement*, which can open it only if it also holds the key *name*.

    :param endorsement: the result of :func:`netspace.attestation.tpm.structures.endorsement`.
    :param name: the attestation key's TPM name.
    :param secret: the bytes to encrypt; at most as long as the digest in the endorsement key's name.
    :return: the contents of TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET.
    :raises Malformed: when *endorsement* can't be used for encryption.
    """
    digest = HASHES[endorsement.name_alg]
    size = hashlib.new(digest).digest_size
    if len(secret) > size:
        raise ValueError(f"a secret of {len(secret)} bytes; at most {size} are accepted")
    assert endorsement.symmetric is not None
    seed, encrypted = _shared_seed(endorsement, digest, size)
    key = kdfa(digest, seed, b"STORAGE\0", name, b"", endorsement.symmetric[1])
    identity = _aes_cfb(key, len(secret).to_bytes(2, "big") + secret)
    integrity = kdfa(digest, seed, b"INTEGRITY\0", b"", b"", size * 8)
    outer = hmac.digest(integrity, identity + name, digest)
    return len(outer).to_bytes(2, "big") + outer + identity, encrypted


def kdfa(digest: str, key: bytes, label: bytes, first: bytes, second: bytes, bits: int) -> bytes:
    """Return *bits* bits of KDFa: SP 800-108 in counter mode with HMAC (Part 1, 11.4.10.2).

    :param label: the label with its final NUL.
    """
    out = b""
    counter = 0
    while len(out) * 8 < bits:
        counter += 1
        block = counter.to_bytes(4, "big") + label + first + second + bits.to_bytes(4, "big")
        out += hmac.digest(key, block, digest)
    return out[: bits // 8]


def kdfe(digest: str, shared: bytes, use: bytes, first: bytes, second: bytes, bits: int) -> bytes:
    """Return *bits* bits of KDFe: SP 800-56A concatenation with a hash (Part 1, 11.4.10.3).

    :param use: the label with its final NUL.
    """
    out = b""
    counter = 0
    while len(out) * 8 < bits:
        counter += 1
        out += hashlib.new(digest, counter.to_bytes(4, "big") + shared + use + first + second).digest()
    return out[: bits // 8]


def _shared_seed(endorsement: Public, digest: str, size: int) -> tuple[bytes, bytes]:
    from cryptography.hazmat.primitives.asymmetric import ec, padding

    if endorsement.type == ECC:
        theirs = cast("ec.EllipticCurvePublicKey", endorsement.key())
        width = (theirs.curve.key_size + 7) // 8
        ours = ec.generate_private_key(theirs.curve)
        point = ours.public_key().public_numbers()
        x, y = point.x.to_bytes(width, "big"), point.y.to_bytes(width, "big")
        their_x = theirs.public_numbers().x.to_bytes(width, "big")
        seed = kdfe(digest, ours.exchange(ec.ECDH(), theirs), _LABEL, x, their_x, size * 8)
        prefix = width.to_bytes(2, "big")
        return seed, prefix + x + prefix + y
    algorithm = hash_algorithm(endorsement.name_alg)
    seed = secrets.token_bytes(size)
    oaep = padding.OAEP(padding.MGF1(algorithm), algorithm, _LABEL)
    try:
        return seed, cast("rsa.RSAPublicKey", endorsement.key()).encrypt(seed, oaep)
    except ValueError as err:
        raise Malformed(f"endorsement key: can't be used to encrypt: {err}") from err


def _aes_cfb(key: bytes, plain: bytes) -> bytes:
    """Encrypt *plain* by AES in CFB mode with 128-bit feedback and a zero IV, block by block (SP 800-38A, 6.3).

    The function doesn't use ``cryptography``'s CFB mode, which will be removed.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 (one block at a time)
    out = b""
    feedback = bytes(16)
    for start in range(0, len(plain), 16):
        part = plain[start : start + 16]
        feedback = bytes(a ^ b for a, b in zip(part, block.update(feedback), strict=False))
        out += feedback
    return out
