"""Measurement lists in a forger's messages: lines, extensions of PCRs, and answers with genuine quotes."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from support.attestation import boot_forge, boot_logs

from netspace.attestation.logs import ima
from netspace.attestation.logs.eventlog import Event

BOOT = "shim-grub"
# The list's first lines: up to systemd and its libraries.
LINES = 40
VIOLATION, ONES = bytes(20), b"\xff" * 32
TEMPLATES = (b"ima", b"ima-ng", b"ima-sig", b"ima-buf", b"ima-ngv2", b"ima-sigv2", b"ima-modsig", b"evm-sig", b"mine")
EVIL = hashlib.sha256(b"evil").digest()
GOOD_LINE = f"/vmlinuz {boot_forge.LINE}".encode()
EVIL_LINE = b"/vmlinuz root=/dev/nvme0n1 init=/bin/evil ima_policy="
KEY, OTHER_KEY = (ec.derive_private_key(number, ec.SECP256R1()) for number in (2, 3))


def sized(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


class Line(NamedTuple):
    """A line in a forger's message."""

    data: bytes
    template: bytes = b"ima-sig"
    digest: bytes = b""
    pcr: int = 10

    def raw(self) -> bytes:
        body = self.data if self.template == b"ima" else sized(self.data)
        digest = self.digest or hashlib.sha1(self.data).digest()
        return struct.pack("<I", self.pcr) + digest + sized(self.template) + body

    def extended(self) -> bytes:
        """Return the value that the kernel extends PCR 10 with for this line."""
        if self.digest == VIOLATION:
            return ONES
        data = self.data
        if self.template == b"ima":
            data = data[:20] + data[24:].ljust(256, b"\0")
        return hashlib.sha256(data).digest()


def file(path: bytes, digest: bytes, signature: bytes = b"", algorithm: bytes = b"sha256") -> Line:
    """Return a line of the template ``ima-sig``."""
    return Line(sized(algorithm + b":\0" + digest) + sized(path + b"\0") + sized(signature))


def signature(key: ec.EllipticCurvePrivateKey, digest: bytes) -> bytes:
    """Return the signature that ``evmctl ima_sign`` writes."""
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest[-4:]
    raw = key.sign(digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    return b"\3\2\4" + identifier + struct.pack(">H", len(raw)) + raw


def _pem() -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return KEY.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


PEM = _pem()
SIGNED = file(
    b"/usr/bin/signed", hashlib.sha256(b"signed").digest(), signature(KEY, hashlib.sha256(b"signed").digest())
)


def _recorded() -> tuple[Line, ...]:
    raw = boot_logs.read(f"{BOOT}/ima_binary_runtime_measurements")
    return (*(Line(entry.data, entry.template, entry.digest) for entry in ima.parse(raw)[:LINES]), SIGNED)


# The kernel's first line, which depends on the boot, is left to the world.
GOOD = _recorded()[1:]


class Extend(NamedTuple):
    """One extension of a PCR.

    :ivar kernel: whether the kernel made the extension, so that the forger can't leave it out.
    """

    pcr: int
    digest: bytes
    kernel: bool = True


@dataclass(frozen=True)
class Round:
    """One answer of the forger to the verifier.

    :ivar upto: length of the tape at the time of the answer.
    :ivar earlier: whether the answer is from an earlier, good boot.
    """

    upto: int
    first: int
    lines: tuple[Line, ...]
    earlier: bool = False


@dataclass(frozen=True)
class Claim:
    """The forger's actions and messages.

    :ivar log: the boot's events in the forger's log.
    """

    tape: tuple[Extend, ...]
    rounds: tuple[Round, ...]
    log: tuple[Event, ...]


def extended(values: dict[int, bytes], tape: Iterable[Extend]) -> dict[int, bytes]:
    """Return the PCR values that result when *tape* extends *values*."""
    found = dict(values)
    for one in tape:
        found[one.pcr] = hashlib.sha256(found[one.pcr] + one.digest).digest()
    return found


def start_values(values: dict[int, bytes] | None = None) -> dict[int, bytes]:
    return {**(boot_logs.values(BOOT) if values is None else values), 10: bytes(32)}


def first_lines(values: dict[int, bytes]) -> tuple[Line, ...]:
    """Return the list of a kernel that started with these PCR values; all its lines are good."""
    aggregate = hashlib.sha256(b"".join(values[pcr] for pcr in range(10))).digest()
    return (file(b"boot_aggregate", aggregate), *GOOD)


@dataclass(frozen=True)
class Known:
    """Data of a host's boot and lists that its forger knows.

    :ivar bad: number of the first bad line.
    :ivar start: values of the PCRs when the list began.
    """

    bad: int
    start: dict[int, bytes]
