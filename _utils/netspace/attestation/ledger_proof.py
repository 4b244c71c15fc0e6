"""Lines of a host's ledger of runs in evidence, and the TPM's certificate of the NV index that they lead to. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from netspace.attestation.base64_fields import octets, text
from netspace.attestation.refusals import Malformed
from netspace.ledger import entries


@dataclass(frozen=True)
class LedgerProof:
    """Lines of a ledger of runs, and the TPM's certificate of the ledger's NV index.

    :param first: number of the first line in *lines*.
    :param lines: the lines as bytes. Some may be newer than the certificate, since the host goes on recording.
    :param attest: TPMS_ATTEST of the NV index, with the qualifying data of the quote; empty for a software key.
    :param signature: TPMT_SIGNATURE of *attest*; empty for a software key.
    """

    first: int
    lines: bytes
    attest: bytes = b""
    signature: bytes = b""

    def wire(self) -> dict[str, Any]:
        """Return the lines and the certificate as JSON values, the form in which the host sends them (wire form)."""
        return {
            "first": self.first,
            "lines": text(self.lines),
            "attest": text(self.attest),
            "sig": text(self.signature),
        }

    def binding(self) -> bytes:
        """Return the bytes of the ledger that a software key signs (as ``Context.environments``): number and lines."""
        return self.first.to_bytes(8, "big") + self.lines


def parse(data: Any) -> LedgerProof:
    """Return the lines and the certificate in a wire form.

    :raises Malformed: for unknown or missing fields, other types, and sizes out of bounds.
    """
    if not isinstance(data, Mapping) or set(data) != {"first", "lines", "attest", "sig"}:
        raise Malformed("evidence: env: expected a mapping with first, lines, attest and sig")
    first = data["first"]
    if type(first) is not int or not 0 <= first <= entries.MOST_LINES + 1:
        raise Malformed("evidence: env: first: expected the number of a line")
    return LedgerProof(
        first,
        octets(data["lines"], entries.MOST_BYTES, "env:lines"),
        octets(data["attest"], 4096, "env:attest"),
        octets(data["sig"], 4096, "env:sig"),
    )
