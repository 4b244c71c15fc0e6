"""Strict readers for reports: little-endian fixed layouts, and the few forms of DER that certificates' extensions have.

Every length is checked before it is used. This module does not interpret the bytes.
"""

from __future__ import annotations

from netspace.attestation.refusals import TeeMalformed

INTEGER, OCTETS, OID, ENUMERATED, IA5, SEQUENCE = 0x02, 0x04, 0x06, 0x0A, 0x16, 0x30
_MAX_ITEMS = 256


class Reader:
    """Reads bytes from front to back; never past their end.

    :param what: name of the structure, for messages.
    """

    def __init__(self, data: bytes, what: str) -> None:
        self.data = data
        self.what = what
        self.at = 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise TeeMalformed(f"{self.what}: ends after {len(self.data)} bytes, {end} are announced")
        part = self.data[self.at : end]
        self.at = end
        return part

    def number(self, size: int) -> int:
        """Return an unsigned little-endian number of *size* bytes."""
        return int.from_bytes(self.take(size), "little")

    def zero(self, count: int) -> None:
        """Skip reserved bytes.

        :raises TeeMalformed: when one is not 0: it may change the meaning of the rest.
        """
        if any(self.take(count)):
            raise TeeMalformed(f"{self.what}: a reserved byte before {self.at} is not 0")

    def end(self) -> None:
        """Check that no bytes are left."""
        if self.at != len(self.data):
            raise TeeMalformed(f"{self.what}: {len(self.data) - self.at} bytes too many")


def element(data: bytes, tag: int, what: str) -> bytes:
    """Return the content of *data*, which must be one DER element with *tag*.

    :raises TeeMalformed: for another tag, another length, or bytes after it.
    """
    found, content, rest = _next(data, what)
    if found != tag or rest:
        raise TeeMalformed(f"{what}: expected one DER element of tag {tag:02x}")
    return content


def elements(data: bytes, what: str) -> list[tuple[int, bytes]]:
    """Return tags and contents of the DER elements in *data*, at most 256."""
    found = []
    while data:
        tag, content, data = _next(data, what)
        found.append((tag, content))
        if len(found) > _MAX_ITEMS:
            raise TeeMalformed(f"{what}: more than {_MAX_ITEMS} DER elements")
    return found


def number(content: bytes, what: str) -> int:
    """Return the value of a DER INTEGER's or ENUMERATED's *content*: not negative, at most 8 bytes, shortest form."""
    if not 1 <= len(content) <= 9 or content[0] & 0x80 or (len(content) > 1 and not content[0] and content[1] < 0x80):
        raise TeeMalformed(f"{what}: not a small number in DER")
    return int.from_bytes(content, "big")


def oid(content: bytes, what: str) -> str:
    """Return a DER OBJECT IDENTIFIER's *content* in dotted form (X.690, 8.19)."""
    if not content or len(content) > 32 or content[-1] & 0x80:
        raise TeeMalformed(f"{what}: not an object identifier")
    arcs: list[int] = []
    value = 0
    for byte in content:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            arcs.append(value)
            value = 0
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:])))


def _next(data: bytes, what: str) -> tuple[int, bytes, bytes]:
    """Tag, content and the rest; definite lengths in their shortest form (X.690, 10.1)."""
    if len(data) < 2:
        raise TeeMalformed(f"{what}: ends within a DER element")
    tag, length, at = data[0], data[1], 2
    if length & 0x80:
        count = length & 0x7F
        if not 1 <= count <= 3 or len(data) < 2 + count:
            raise TeeMalformed(f"{what}: a DER length of {count} bytes")
        at = 2 + count
        length = int.from_bytes(data[2:at], "big")
        if length < 0x80 or length >> 8 * (count - 1) == 0:
            raise TeeMalformed(f"{what}: a DER length that is not in its shortest form")
    if at + length > len(data):
        raise TeeMalformed(f"{what}: ends within a DER element")
    return tag, data[at : at + length], data[at + length :]
