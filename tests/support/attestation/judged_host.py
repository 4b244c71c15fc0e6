"""A host with a fake TPM whose evidence is appraised, and lines for its measurement list."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Callable
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from netspace.attestation.evidence import Context
from netspace.attestation.logs import ima
from netspace.attestation.logs.eventlog import Event
from netspace.attestation.policy import policy
from netspace.attestation.verifier import attestation_keys, verifier
from netspace.attestation.verifier.verifier import Expected
from support.attestation import boot_forge, boot_logs
from support.attestation.boot_forge import PCRS

NOW = 1_700_000_000.0


SYSTEMD = boot_logs.read("uki/systemd-tpm2-measure.log")


BOOTS = ["shim-grub", "uki"]


class Host:
    """A fake TPM after a boot. Its quotes are genuine, and its endorsement key counts as certified."""

    def __init__(self, tpm: Any, context: Context, boot: str = "shim-grub") -> None:
        self.tpm, self.context, self.boot = tpm, context, boot
        self.log = boot_logs.read(f"{boot}/binary_bios_measurements")
        self.tpm.pcrs = boot_logs.values(boot)
        self.lines = boot_logs.read(f"{boot}/ima_binary_runtime_measurements")
        made = attestation_keys.challenge(tpm.enrolment(), context, roots=[], pinned=None, now=NOW)
        bound = made.redeem(context.activation(tpm.activate(made.blob, made.encrypted), made._key.name), NOW)
        self.bound = dataclasses.replace(bound, level=3)

    def edit(self, edit: Callable[[list[Event]], None]) -> None:
        self.log, self.tpm.pcrs = boot_forge.edited(self.boot, edit)

    def appraise(self, rules: dict | None, *, pcrs: tuple[int, ...] | None = None, references: Any = None,
                 first: int | None = None, start: ima.State | None = None) -> verifier.Verified:  # fmt: skip
        chosen = PCRS[self.boot] if pcrs is None else pcrs
        evidence = dataclasses.replace(
            self.tpm.evidence(self.context, chosen),
            boot_log=self.log,
            systemd_log=SYSTEMD if self.boot == "uki" else None,
        )
        if first is not None:
            skipped = ima.parse(self.lines)[:first] if first else []
            start_at = sum(28 + len(one.template) + 4 + len(one.data) for one in skipped)
            measurements = self.tpm.measurements(self.context, self.lines[start_at:], first)
            evidence = dataclasses.replace(evidence, ima=measurements)
        expected = Expected(
            self.context, chosen, None, references, policy.parse(rules) if rules is not None else None, start
        )
        return verifier.verify_quote(evidence, self.bound, expected)


def allowed(lines: bytes, **rules: Any) -> dict[str, Any]:
    """Return the IMA policy that *lines* satisfy."""
    files: dict[str, list[str]] = {}
    for entry in ima.parse(lines):
        file = ima.file(entry)
        if file is not None and file.path != b"boot_aggregate":
            algorithm, _, digest = file.digest.partition(b":\0")
            files.setdefault(file.path.decode(), []).append(f"{algorithm.decode()}:{digest.hex()}")
    return {"files": files, **rules}


def whole(host: Host, **rules: Any) -> dict[str, Any]:
    return {**boot_forge.policy(host.boot), "ima": allowed(host.lines, **rules)}


def line(path: bytes, digest: bytes, signature: bytes | None = None, name: bytes = b"ima-sig") -> bytes:
    data = struct.pack("<I", len(digest)) + digest + struct.pack("<I", len(path) + 1) + path + b"\0"
    data += struct.pack("<I", len(signature or b"")) + (signature or b"")
    head = struct.pack("<I", 10) + hashlib.sha1(data).digest() + struct.pack("<I", len(name)) + name
    return head + struct.pack("<I", len(data)) + data


def add(host: Host, raw: bytes) -> None:
    host.lines += raw
    host.tpm.pcrs[10] = list(ima.replay(ima.parse(host.lines)))[-1]


CONTENT = b"sha256:\0" + hashlib.sha256(b"program").digest()


def signature(key: Any, digest: bytes = hashlib.sha256(b"program").digest(), algorithm: int = 4) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest[-4:]
    if isinstance(key, rsa.RSAPrivateKey):
        raw = key.sign(digest, padding.PKCS1v15(), Prehashed(hashes.SHA256()))
    else:
        raw = key.sign(digest, ec.ECDSA(Prehashed(hashes.SHA256())))
    return bytes((3, 2, algorithm)) + identifier + struct.pack(">H", len(raw)) + raw


def pem(key: Any) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()
