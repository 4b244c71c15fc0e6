"""Reader of the operator's folder for TEEs: makers' roots, other certificates, revocation lists, Intel's documents.

==============================  ===================================================================
``.pem``, ``.crt``, ``.der``    certificates. A self-signed one is a root; others (AMD's ASK, a host's VCEK,
                                Intel's TCB signing certificate) are not trusted by themselves
``.crl``                        a revocation list, PEM or DER
``.json``                       Intel's TCB information or the identity of its quoting enclave, byte for byte
                                as Intel's service returns it
==============================  ===================================================================

This module fetches nothing. Anybody who can write to the folder decides which TEEs are genuine.
"""

from __future__ import annotations

from pathlib import Path

from netspace.attestation.endorsement import ek_certificates
from netspace.attestation.tee import tdx_tcb, x509
from netspace.attestation.tee.x509 import Trust
from netspace.errors import NetspaceError

MAX_FILES = 4096


def read(folder: str | None) -> Trust:
    """Read the folder. If *folder* is None, no certificate is trusted.

    :raises NetspaceError: when the folder or a file can't be read. (If such a file were ignored, trust would be lower
        without a reason.)
    """
    if folder is None:
        return Trust()
    roots: list[bytes] = []
    known: list[bytes] = []
    lists: list[bytes] = []
    documents: list[bytes] = []
    path = Path(folder)
    try:
        entries = sorted(path.iterdir())
        if len(entries) > MAX_FILES:
            raise NetspaceError(f"{len(entries)} files; at most {MAX_FILES} are accepted")
        for path in entries:
            if path.suffix in (".pem", ".crt", ".der"):
                for one in _certificates(path.read_bytes()):
                    (roots if x509.is_root(x509.load(one)) else known).append(one)
            elif path.suffix == ".crl":
                lists.append(ek_certificates.revocations(path.read_bytes()))
                x509.load_list(lists[-1])  # stricter than for TPMs, whose makers may write names in the wrong order
            elif path.suffix == ".json":
                documents.append(path.read_bytes())
                tdx_tcb.read(documents[-1])
    except (OSError, ValueError, NetspaceError) as err:
        raise NetspaceError(f"attestation:tee_roots: {path}: {err}") from err
    return Trust(tuple(roots), tuple(known), tuple(lists), tuple(documents))


def _certificates(raw: bytes) -> list[bytes]:
    if raw.lstrip()[:5] != b"-----":
        return [raw]
    found = x509.from_pem(raw, MAX_FILES)
    if not found:
        raise NetspaceError("no certificate in PEM")
    return found
