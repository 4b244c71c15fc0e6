"""Reader for the DER that makers of TPMs write: elements, concatenated certificates, and unsorted sets.

Some makers (Nuvoton among them) write a SET OF with unsorted members. X.690, 11.6, forbids that, and ``cryptography``
refuses such certificates. :func:`with_sorted_sets` returns a copy that ``cryptography`` can read. The signed part of
the copy differs from the original's, so **signatures are checked over the original bytes** (:func:`signed_part`), never
over the copy.

The reader accepts only definite lengths and tags of one byte. Every element must end within the element around it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import NamedTuple

SEQUENCE, SET, OCTETS = 0x30, 0x31, 0x04
_CONSTRUCTED = 0x20
# subjectAltName and issuerAltName (RFC 5280, 4.2.1.6): the octet strings of these extensions contain names of TPMs.
_NAMES = (b"\x06\x03\x55\x1d\x11", b"\x06\x03\x55\x1d\x12")
MAX_DEPTH = 24
# The boundary of a PEM block. In a damaged boundary the label is missing.
_BOUNDARY = re.compile(rb"-----(BEGIN|END)(?: ([A-Z0-9 ]{1,64})-----)?")


class Element(NamedTuple):
    """A DER element: its tag, and the offsets of its start, its content and its end."""

    tag: int
    start: int
    content: int
    end: int


class Pem(NamedTuple):
    """The contents of all PEM blocks in a text, in order, and a problem for each damaged block."""

    contents: list[bytes]
    problems: list[str]


def from_pem(text: bytes) -> Pem:
    """Return the PEM blocks (RFC 7468) in *text*. Text around them is ignored."""
    found = Pem([], [])
    begun: re.Match[bytes] | None = None
    for boundary in _BOUNDARY.finditer(text):
        place = f"PEM at byte {(begun or boundary).start()}"
        if boundary[1] == b"BEGIN":
            if begun is not None:
                found.problems.append(f"{place}: the block has no END line")
            begun = boundary
            continue
        if begun is None or begun[2] is None or begun[2] != boundary[2]:
            found.problems.append(f"{place}: the END line does not match a BEGIN line")
        else:
            try:
                found.contents.append(_base64(text[begun.end() : boundary.start()]))
            except ValueError as err:
                found.problems.append(f"{place}: {err}")
        begun = None
    if begun is not None:
        found.problems.append(f"PEM at byte {begun.start()}: the block has no END line")
    return found


def _base64(body: bytes) -> bytes:
    data = base64.b64decode(b"".join(body.split()), validate=True)
    if not data:
        raise ValueError("an empty block")
    return data


def element(data: bytes, at: int, end: int) -> Element:
    """Return the element of *data* that begins at offset *at* and ends at offset *end* or before it.

    :raises ValueError: when there is no such element.
    """
    if end - at < 2:
        raise ValueError("DER: an element is cut off")
    tag, length = data[at], data[at + 1]
    content = at + 2
    if tag & 0x1F == 0x1F:
        raise ValueError("DER: a tag of several bytes")
    if length & 0x80:
        size = length & 0x7F
        if not 1 <= size <= 4 or end - content < size:
            raise ValueError("DER: a length that is indefinite, or of more than 4 bytes")
        length = int.from_bytes(data[content : content + size], "big")
        content += size
    if length > end - content:
        raise ValueError("DER: an element that is longer than the element around it")
    return Element(tag, at, content, content + length)


def elements(data: bytes, at: int, end: int) -> Iterator[Element]:
    """Yield the elements of *data* from offset *at* to *end*.

    :raises ValueError: when the elements don't end exactly at *end*.
    """
    while at < end:
        found = element(data, at, end)
        yield found
        at = found.end


def split(data: bytes, most: int) -> list[bytes]:
    """Split *data* into its DER certificates, at most *most*. Padding may follow the last certificate.

    A TPM's NV indices hold a chain in this form (TCG EK Credential Profile 2.5, 2.2.1.5.2).

    :raises ValueError: when *data* does not begin with a certificate, or a certificate is cut off.
    """
    found: list[bytes] = []
    at = 0
    while at < len(data) and len(found) < most and data[at] not in (0x00, 0xFF):
        one = element(data, at, len(data))
        if one.tag != SEQUENCE:
            raise ValueError(f"DER: tag {one.tag:02x} where a certificate is expected")
        found.append(data[one.start : one.end])
        at = one.end
    return found


def signed_part(data: bytes) -> bytes:
    """Return the signed part of a certificate or revocation list (RFC 5280, 4.1.1).

    :param data: the certificate or revocation list, as DER.
    :raises ValueError: when *data* is neither a certificate nor a revocation list, or names two different signature
        algorithms.
    """
    whole = element(data, 0, len(data))
    if whole.tag != SEQUENCE or whole.end != len(data):
        raise ValueError("DER: not one certificate")
    signed = element(data, whole.content, whole.end)
    algorithm = element(data, signed.end, whole.end)
    outside = data[algorithm.start : algorithm.end]
    at = signed.content
    for _ in range(3):  # before the algorithm: a certificate's version and serial number, a list's version
        inside = element(data, at, signed.end)
        if inside.tag == SEQUENCE:
            break
        at = inside.end
    if data[inside.start : inside.end] != outside:
        raise ValueError("DER: two fields name different algorithms of one signature")
    return data[signed.start : signed.end]


def with_sorted_sets(data: bytes) -> bytes:
    """Return *data* with the members of every SET sorted (X.690, 11.6).

    Use the result for reading, never for verifying.

    :raises ValueError: when *data* is not DER of at most :data:`MAX_DEPTH` levels.
    """
    return b"".join(_sorted(data, one, 0) for one in elements(data, 0, len(data)))


def with_sorted_issuer(data: bytes) -> bytes:
    """Return a copy of a revocation list with a sorted issuer's name.

    The list's entries, which may take megabytes, are not parsed.

    :raises ValueError: when *data* is not a revocation list.
    """
    whole = element(data, 0, len(data))
    signed = element(data, whole.content, whole.end)
    sequences = 0
    for one in elements(data, signed.content, signed.end):
        sequences += one.tag == SEQUENCE
        if sequences == 2:  # the algorithm, and then the issuer
            return data[: one.start] + _sorted(data, one, 0) + data[one.end :]
    raise ValueError("DER: a revocation list without an issuer")


def _sorted(data: bytes, one: Element, depth: int) -> bytes:
    if not one.tag & _CONSTRUCTED:
        return data[one.start : one.end]
    if depth > MAX_DEPTH:
        raise ValueError(f"DER: elements are nested more than {MAX_DEPTH} levels deep")
    children = list(elements(data, one.content, one.end))
    made = [_sorted(data, child, depth + 1) for child in children]
    if one.tag == SET:
        made.sort()
    elif one.tag == SEQUENCE and len(made) > 1 and made[0] in _NAMES and children[-1].tag == OCTETS:
        last = children[-1]
        head = data[last.start : last.content]
        inner = [_sorted(data, child, depth + 1) for child in elements(data, last.content, last.end)]
        made[-1] = head + b"".join(inner)
    return data[one.start : one.content] + b"".join(made)
