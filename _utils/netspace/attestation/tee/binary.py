"""Strict readers for TEE reports: little-endian fixed layouts, and the DER forms that certificate extensions use.

Every length is checked before it is used. This module does not interpret the bytes.
"""

from __future__ import annotations

from netspace.attestation.endorsement import der
from netspace.attestation.refusals import TeeMalformed
from netspace.attestation.tpm import structures

INTEGER, OCTETS, OID, ENUMERATED, IA5, SEQUENCE = 0x02, 0x04, 0x06, 0x0A, 0x16, 0x30
_MAX_ITEMS = 256


class Reader(structures.Reader):
    """Sequential reader of a report, which never reads past its end. The caller checks the report's size."""

    order = "little"
    malformed = TeeMalformed

    def __init__(self, data: bytes, what: str) -> None:
        super().__init__(data, what, len(data))

    def zero(self, count: int) -> None:
        """Skip reserved bytes.

        :raises TeeMalformed: when one of these bytes is not 0, because it may change the meaning of the rest.
        """
        if any(self.take(count)):
            raise self.refuse(f"a reserved byte before {self.at} is not 0")


def element(data: bytes, tag: int, what: str) -> bytes:
    """Return the content of *data*, which must be one DER element with *tag*.

    :param what: the name of the value, for messages.
    :raises TeeMalformed: for another tag, another length, or bytes after the element.
    """
    found, content, rest = _next(data, what)
    if found != tag or rest:
        raise TeeMalformed(f"{what}: expected one DER element of tag {tag:02x}")
    return content


def elements(data: bytes, what: str) -> list[tuple[int, bytes]]:
    """Return tags and contents of the DER elements in *data*, which may have at most 256.

    :param what: the name of the value, for messages.
    :raises TeeMalformed: when an element is malformed, or *data* has more than 256 elements.
    """
    found = []
    while data:
        tag, content, data = _next(data, what)
        found.append((tag, content))
        if len(found) > _MAX_ITEMS:
            raise TeeMalformed(f"{what}: more than {_MAX_ITEMS} DER elements")
    return found


def number(content: bytes, what: str) -> int:
    """Return the value of a DER INTEGER or ENUMERATED.

    It must be in shortest form, not negative, and of at most 9 bytes.

    :param what: the name of the value, for messages.
    :raises TeeMalformed: when *content* is not such a number.
    """
    if not 1 <= len(content) <= 9 or content[0] & 0x80 or (len(content) > 1 and not content[0] and content[1] < 0x80):
        raise TeeMalformed(f"{what}: expected a number in DER, not negative and in its shortest form")
    return int.from_bytes(content, "big")


def oid(content: bytes, what: str) -> str:
    """Return a DER OBJECT IDENTIFIER in dotted form (X.690, 8.19).

    :param what: the name of the value, for messages.
    """
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
    """Return tag and content of the first DER element, and the bytes after the element.

    :raises TeeMalformed: when the element's length is indefinite or not in shortest form (X.690, 10.1).
    """
    try:
        found = der.element(data, 0, len(data))
    except ValueError as err:
        raise TeeMalformed(f"{what}: {err}") from err
    length = found.end - found.content
    more = 0 if length < 0x80 else (length.bit_length() + 7) // 8
    if found.content - found.start != 2 + more:
        raise TeeMalformed(f"{what}: a DER length that is not in its shortest form")
    return found.tag, data[found.content : found.end], data[found.end :]
