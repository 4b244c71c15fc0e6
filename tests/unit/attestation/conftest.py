"""A small software TPM for tests of the verifier, whose keys the test has, and a fleet of one host with this TPM.

The TPM doesn't use the library where independence matters: it opens credentials with its own code.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from support.attestation import runner_bus
from support.attestation.honest_minion import MASTER, NOW, Minion, enrolled
from support.attestation.judged_host import BOOTS, Host
from support.attestation.small_fleet import Store

from netspace.attestation import identity
from netspace.attestation.evidence import Context, Enrolment, Evidence, Measurements
from netspace.attestation.fleet import groups
from netspace.attestation.fleet.fleet import Fleet
from netspace.attestation.registrar.registrar import Registrar

EK_ATTRIBUTES = 0x000300B2
AK_ATTRIBUTES = 0x00050072


def sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def coordinates(key: ec.EllipticCurvePublicKey) -> tuple[bytes, bytes]:
    numbers = key.public_numbers()
    return numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big")


def ecc_public(
    key: ec.EllipticCurvePublicKey, attributes: int, symmetric: bytes, scheme: bytes, name_alg: int = 0x000B
) -> bytes:
    x, y = coordinates(key)
    head = struct.pack(">HHI", 0x0023, name_alg, attributes) + sized(b"")
    return head + symmetric + scheme + struct.pack(">HH", 0x0003, 0x0010) + sized(x) + sized(y)


def rsa_public(key: rsa.RSAPublicKey, attributes: int, symmetric: bytes, scheme: bytes) -> bytes:
    head = struct.pack(">HHI", 0x0001, 0x000B, attributes) + sized(b"")
    return head + symmetric + scheme + struct.pack(">HI", 2048, 0) + sized(key.public_numbers().n.to_bytes(256, "big"))


AES_CFB = struct.pack(">HHH", 0x0006, 128, 0x0043)
NULL = struct.pack(">H", 0x0010)
ECDSA_SHA256 = struct.pack(">HH", 0x0018, 0x000B)


class FakeTpm:
    def __init__(self, rsa_key: bool = False) -> None:
        self.ak = ec.generate_private_key(ec.SECP256R1())
        self.ak_public = ecc_public(self.ak.public_key(), AK_ATTRIBUTES, NULL, ECDSA_SHA256)
        if rsa_key:
            self.ek: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey = rsa.generate_private_key(65537, 2048)
            self.ek_public = rsa_public(self.ek.public_key(), EK_ATTRIBUTES, AES_CFB, NULL)
        else:
            self.ek = ec.generate_private_key(ec.SECP256R1())
            self.ek_public = ecc_public(self.ek.public_key(), EK_ATTRIBUTES, AES_CFB, NULL)
        self.keys = {b"": self.ak}
        self.pcrs = {pcr: hashlib.sha256(bytes([pcr])).digest() for pcr in range(24)}
        self.clock = (1000, 5, 2, 1)
        self.firmware = 0

    def take(self, period: bytes) -> None:
        """Use the attestation key of *period* from now on. Different periods have different keys."""
        self.ak = self.keys.setdefault(period, ec.generate_private_key(ec.SECP256R1()))
        self.ak_public = ecc_public(self.ak.public_key(), AK_ATTRIBUTES, NULL, ECDSA_SHA256)

    def enrolment(self, **changes: object) -> Enrolment:
        values = {
            "template": "EK-ECC256",
            "endorsement": self.ek_public,
            "certificate": None,
            "attestation": self.ak_public,
        }
        return Enrolment(**{**values, **changes})

    def activate(self, blob: bytes, encrypted: bytes) -> bytes:
        """Run TPM2_ActivateCredential (Part 1, 24) for the attestation key."""
        name = b"\0\x0b" + hashlib.sha256(self.ak_public).digest()
        if isinstance(self.ek, rsa.RSAPrivateKey):
            oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"IDENTITY\0")
            seed = self.ek.decrypt(encrypted, oaep)
        else:
            x, y = encrypted[2:34], encrypted[36:68]
            point = ec.EllipticCurvePublicNumbers(
                int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1()
            ).public_key()
            shared = self.ek.exchange(ec.ECDH(), point)
            own = coordinates(self.ek.public_key())[0]
            seed = hashlib.sha256(b"\0\0\0\1" + shared + b"IDENTITY\0" + x + own).digest()
        outer, identity = blob[2:34], blob[34:]
        integrity = hmac.digest(seed, b"\0\0\0\1INTEGRITY\0" + b"\0\0\1\0", "sha256")
        assert hmac.compare_digest(outer, hmac.digest(integrity, identity + name, "sha256")), "TPM_RC_INTEGRITY"
        key = hmac.digest(seed, b"\0\0\0\1STORAGE\0" + name + b"\0\0\0\x80", "sha256")[:16]
        block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
        plain, feedback = b"", bytes(16)
        for at in range(0, len(identity), 16):
            part = identity[at : at + 16]
            plain += bytes(a ^ b for a, b in zip(part, block.update(feedback), strict=False))
            feedback = part
        return plain[2 : 2 + struct.unpack(">H", plain[:2])[0]]

    def attest(
        self,
        extra: bytes,
        pcrs: tuple[int, ...] = tuple(range(8)),
        *,
        magic: int = 0xFF544347,
        kind: int = 0x8018,
        bank: int = 0x000B,
        selections: bytes | None = None,
        digest: bytes | None = None,
        signer: bytes | None = None,
    ) -> bytes:
        bits = sum(1 << pcr for pcr in set(pcrs))
        if selections is None:
            selections = struct.pack(">IHB", 1, bank, 3) + bits.to_bytes(3, "little")
        if digest is None:
            digest = hashlib.sha256(b"".join(self.pcrs[pcr] for pcr in sorted(set(pcrs)))).digest()
        if signer is None:
            name = b"\0\x0b" + hashlib.sha256(self.ak_public).digest()
            signer = b"\0\x0b" + hashlib.sha256(struct.pack(">I", 0x4000000B) + name).digest()
        head = struct.pack(">IH", magic, kind) + sized(signer) + sized(extra)
        return head + struct.pack(">QIIB", *self.clock) + struct.pack(">Q", self.firmware) + selections + sized(digest)

    def sign(self, attest: bytes, scheme: bytes = ECDSA_SHA256) -> bytes:
        r, s = utils.decode_dss_signature(self.ak.sign(attest, ec.ECDSA(hashes.SHA256())))
        return scheme + sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))

    def evidence(self, context: Context, pcrs: tuple[int, ...] = tuple(range(8)), **changes: object) -> Evidence:
        attest = self.attest(context.qualifying(), pcrs, **changes)
        return Evidence("tpm", self.ak_public, attest, self.sign(attest), {pcr: self.pcrs[pcr] for pcr in pcrs})

    def measurements(self, context: Context, lines: bytes, first: int = 0, **changes: object) -> Measurements:
        """Return a quote of PCR 10, with *lines* of the IMA list."""
        attest = self.attest(context.qualifying(), (10,), **changes)
        return Measurements(attest, self.sign(attest), self.pcrs[10], first, lines)

    def ek_public_pem(self) -> bytes:
        return self.ek.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )


@pytest.fixture
def fake_tpm() -> FakeTpm:
    return FakeTpm()


@pytest.fixture(scope="session")
def fake_rsa_tpm() -> FakeTpm:
    return FakeTpm(rsa_key=True)


@pytest.fixture
def context() -> Context:
    return Context("verifier", "host", "session", bytes(range(32)))


# -- a fleet of one host ---------------------------------------------------------------
@pytest.fixture
def registrar(tmp_path: Path) -> Registrar:
    made = Registrar(tmp_path / "master")
    made.ca.init(NOW)
    return made


@pytest.fixture
def host(fake_tpm: FakeTpm, context: Context) -> Host:
    return Host(fake_tpm, context)


@pytest.fixture(params=BOOTS)
def either(request: pytest.FixtureRequest, fake_tpm: FakeTpm, context: Context) -> Host:
    return Host(fake_tpm, context, request.param)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def made(tmp_path: Path, store: Store) -> Fleet:
    registrar = Registrar(tmp_path / "master")
    registrar.ca.init(NOW)
    chosen = groups.parse([{"name": "web", "match": ["web*"], "minimum": "L2", "deadline": 7200}])
    keys = identity.Identities(MASTER, lambda minion: runner_bus.SALT_PUBLIC)
    return Fleet(registrar, MASTER, chosen, store, identities=keys)


@pytest.fixture
def minion(made: Fleet, fake_tpm: FakeTpm) -> Minion:
    one = Minion("web1", fake_tpm)
    enrolled(made.registrar, one, NOW)
    return one


@pytest.fixture
def logged(minion: Minion) -> bytes:
    """Give the TPM the values of a recorded boot; return the boot's log."""
    from support.attestation.boot_forge import edited

    log, pcrs = edited("shim-grub", lambda found: None)
    minion.tpm.pcrs.update(pcrs)
    return log
