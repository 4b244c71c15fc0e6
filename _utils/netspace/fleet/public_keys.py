"""Canonical form of the X25519 public keys that hosts publish. One key can have several spellings. Pure.

X25519 ignores the highest bit of a key, and reads the other bits as a number modulo 2^255 - 19 (RFC 7748, section 5).
Base64 of 32 bytes leaves two bits unused. So a key has several spellings, and all of them give the same shared secrets.
"""

from __future__ import annotations

import base64
import re

PRIME = 2**255 - 19
BYTES = 32
_SPELLING = re.compile(r"[A-Za-z0-9_-]{43}")


def canonical(text: str) -> str:
    """Return a key in the spelling that ``netspace_link.public_key`` prints.

    :raises ValueError: *text* isn't 32 bytes in base64url without padding.
    """
    if not _SPELLING.fullmatch(text):
        raise ValueError(f"{text!r:.80} isn't {BYTES} bytes in base64url")
    raw = base64.urlsafe_b64decode(f"{text}=")
    number = (int.from_bytes(raw, "little") & (2**255 - 1)) % PRIME
    return base64.urlsafe_b64encode(number.to_bytes(BYTES, "little")).decode().rstrip("=")


def same(one: str, other: str) -> bool:
    """Return whether two texts are the same key. If one isn't a key, the texts themselves are compared."""
    try:
        return canonical(one) == canonical(other)
    except ValueError:
        return one == other
