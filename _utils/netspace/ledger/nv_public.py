"""Public area of the ledger's NV index, and its name (TPM 2.0 Library, Part 2, 13). Pure.

- Its type is EXTEND: a write replaces the value by SHA-256(value || data). No command sets a value.
- The value is gone after each reset of the TPM (CLEAR_STCLEAR), as that of a PCR. So a ledger is of one boot.
- The TPM keeps it in its memory (ORDERLY), since flash memory would wear out.
- Extending or certifying it needs its authorization value, which is in a file that only root can read.

Anybody who may act as the TPM's owner, such as root, can delete the index and define it again. Its value is then lost.
"""

from __future__ import annotations

import hashlib
import struct

INDEX = 0x01804E53
SIZE = 32
_SHA256 = 0x000B
_EXTEND = 4
# TPMA_NV (Part 2, 13.4)
AUTHWRITE, OWNERREAD, AUTHREAD = 1 << 2, 1 << 17, 1 << 18
NO_DA, ORDERLY, CLEAR_STCLEAR, WRITTEN = 1 << 25, 1 << 26, 1 << 27, 1 << 29
ATTRIBUTES = _EXTEND << 4 | AUTHWRITE | OWNERREAD | AUTHREAD | NO_DA | ORDERLY | CLEAR_STCLEAR


def public(attributes: int = ATTRIBUTES, index: int = INDEX) -> bytes:
    """Return the public area (TPMS_NV_PUBLIC) of an index."""
    return struct.pack(">IHIHH", index, _SHA256, attributes, 0, SIZE)


def name(attributes: int = ATTRIBUTES | WRITTEN, index: int = INDEX) -> bytes:
    """Return the name of an index (Part 1, 16), which a certificate contains."""
    return struct.pack(">H", _SHA256) + hashlib.sha256(public(attributes, index)).digest()
