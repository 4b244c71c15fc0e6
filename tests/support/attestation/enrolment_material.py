"""The material of a forger of enrolments: makers of TPMs, genuine TPMs, and software TPMs.

A genuine TPM makes attestation keys with any attributes, and opens credentials only for its own keys (``Tpm``). A
software TPM opens all credentials for its own endorsement keys, and claims any attributes for its attestation keys.
"""

from __future__ import annotations

import contextlib
import datetime
import random
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier

from netspace.attestation.tpm import structures
from netspace.errors import NetspaceError

NOW = 1_700_000_000.0
# Attributes of an attestation key as it must be.
GOOD = 0x00050072


class Unknown(Exception):
    """Error: the forger can't have this secret."""


@dataclass
class Tpm:
    """A TPM, or software that imitates one: endorsement keys by kind, and the attestation keys that it made."""

    name: str
    eks: dict[str, Any]
    certificates: dict[str, bytes]
    made: dict[bytes, int] = field(default_factory=dict)

    def make(self, like: Any, attributes: int = GOOD) -> bytes:
        """Make an attestation key whose TPMT_PUBLIC has its true attributes."""
        like.take(random.randbytes(16))
        public: bytes = like.ak_public[:4] + attributes.to_bytes(4, "big") + like.ak_public[8:]
        self.made[public] = attributes
        return public

    def open(self, public: bytes, key: bytes, blob: bytes, encrypted: bytes) -> bytes:
        """Run TPM2_ActivateCredential for the endorsement key *public* and the object *key*.

        :raises Unknown: a TPM would refuse.
        """
        for one in self.eks.values():
            if structures.public(one.ek_public).fingerprint == fingerprint(public):
                if self.name != "S" and key not in self.made:
                    break
                one.ak_public = key
                try:
                    opened: bytes = one.activate(blob, encrypted)
                except (AssertionError, ValueError) as err:
                    raise Unknown from err
                return opened
        raise Unknown


class Material:
    """The material of every scene: makers, TPMs and their certificates. It is made once, since RSA keys take time.

    :param fake: the tests' class of TPMs (``FakeTpm``).
    """

    def __init__(self, fake: Any) -> None:
        self.fake = fake
        self.root, self.maker, self.evil = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        self.root_certificate = certificate("root", self.root.public_key(), "root", self.root, ca=True)
        self.maker_certificate = certificate("maker", self.maker.public_key(), "root", self.root, ca=True)
        self.evil_certificate = certificate("maker", self.evil.public_key(), "root", self.evil, ca=True)
        self.tpms: dict[str, Tpm] = {}
        for name in ("T1", "T2", "T3", "S"):
            eks = {"ecc": fake(), "rsa": fake(rsa_key=True)}
            signer = self.evil if name == "S" else self.maker
            given = {kind: certificate("", one.ek.public_key(), "maker", signer) for kind, one in eks.items()}
            self.tpms[name] = Tpm(name, eks, given)
        self.owners = {
            structures.public(one.ek_public).fingerprint: tpm.name
            for tpm in self.tpms.values()
            for one in tpm.eks.values()
        }

    def key(self, name: str) -> Any:
        tpm, _, kind = name.partition(".")
        return self.tpms[tpm].eks[kind]


def certificate(subject: str, key: Any, issuer: str, by: ec.EllipticCurvePrivateKey, *, ca: bool = False) -> bytes:
    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])

    usage = dict.fromkeys(("digital_signature", "content_commitment", "key_agreement", "data_encipherment"), False)
    usage |= {"key_cert_sign": ca, "crl_sign": ca, "encipher_only": False, "decipher_only": False}
    start = datetime.datetime.fromtimestamp(NOW, tz=datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - datetime.timedelta(days=1))
        .not_valid_after(start + datetime.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca, None), True)
        .add_extension(x509.KeyUsage(**usage, key_encipherment=not ca), True)
    )
    if not ca:
        made = made.add_extension(x509.ExtendedKeyUsage([ObjectIdentifier("2.23.133.8.1")]), False)
    return made.sign(by, hashes.SHA256()).public_bytes(Encoding.DER)


def fingerprint(public: bytes) -> str:
    with contextlib.suppress(NetspaceError):
        return structures.public(public).fingerprint
    return ""
