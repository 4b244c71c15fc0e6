"""A host's ledger of runs, and what root of that host may send in its place."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Callable
from typing import Any

from netspace.attestation.evidence import Context
from netspace.attestation.ledger_proof import LedgerProof
from netspace.ledger import entries, nv_public
from netspace.ledger.entries import Run
from support.attestation.small_fleet import BOOT

ATTEST_NV = 0x8014
DAY = 1_790_000_000


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def run(name: str, image: str = "good") -> Run:
    return Run(digest(f"image {image}"), digest(f"configuration {name}"), digest(f"certificate {name}"))


def head(lines: list[bytes]) -> bytes:
    return entries.last(lines).head


class Ledger:
    """The ledger of a host with a fake TPM, whose NV index has the value that the lines lead to."""

    def __init__(self, tpm: Any, boot: str = BOOT) -> None:
        self.tpm = tpm
        self.lines = [entries.boot(boot), entries.declared(digest("declaration"))]
        self.value: bytes | None = None

    def start(self, *names: str, image: str = "good") -> None:
        self.lines += entries.started({name: run(name, image) for name in names}, DAY)

    def end(self, *names: str) -> None:
        self.lines += entries.ended(names, DAY + 1)

    @property
    def certified(self) -> bytes:
        return head(self.lines) if self.value is None else self.value

    def statement(
        self, context: Context, *, name: bytes | None = None, offset: int = 0, content: bytes | None = None, **more: Any
    ) -> bytes:
        """Return the TPM's certificate of the index (TPMS_ATTEST)."""
        whole: bytes = self.tpm.attest(
            context.qualifying(), **{"kind": ATTEST_NV, "selections": b"", "digest": b"", **more}
        )
        content = self.certified if content is None else content
        name = nv_public.name() if name is None else name
        told = struct.pack(">H", len(name)) + name + struct.pack(">HH", offset, len(content)) + content
        return whole[:-2] + told

    def proof(self, context: Context, first: int = 0, **more: Any) -> LedgerProof:
        attest = self.statement(context, **more)
        return LedgerProof(first, b"".join(self.lines[first:]), attest, self.tpm.sign(attest))


def replaced(proof: LedgerProof, change: Callable[[list[bytes]], list[bytes]]) -> LedgerProof:
    """Return the proof with other lines."""
    return dataclasses.replace(proof, lines=b"".join(change(entries.split(proof.lines))))
