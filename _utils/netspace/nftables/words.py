"""Text for nft(8), written so that nft can't mistake a value for anything else.

Every text in a rule comes from this library; values are numbers, parsed addresses, or names. A name may have only
letters, digits and a few marks that mean nothing to nft.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Mapping

from netspace.patterns import pattern

Verdict = tuple[int, str]
"""The value of a map's key: the verdict's code in the kernel, and its chain."""

_JUMP, _GOTO = -3, -4
_VERDICTS = {_JUMP: "jump", _GOTO: "goto"}
_NAME = pattern(r"[A-Za-z][A-Za-z0-9_.-]{0,127}")
_LINK = pattern(r"[A-Za-z0-9][A-Za-z0-9_.@:-]{0,14}")
# The bytes in the kernel of each type of a set's keys.
_SIZES = {"ifname": 16, "ether_addr": 8, "ipv4_addr": 4, "ipv6_addr": 16, "inet_proto": 4, "inet_service": 4}
_HEADERS = {"link": "@ll", "network": "@nh"}
_WRITTEN = 16  # bytes that one statement writes


def to_jump(chain: str) -> Verdict:
    """Return the map's verdict that jumps to *chain*; after the chain, processing returns."""
    return _JUMP, chain


def to_goto(chain: str) -> Verdict:
    """Return the map's verdict that goes to *chain*; processing doesn't return."""
    return _GOTO, chain


def name(text: str) -> str:
    """Return *text* as the name of a table, chain, set or object.

    :raises ValueError: nft might read *text* as something else.
    """
    if not _NAME.fullmatch(text):
        raise ValueError(f"{text!r}: not usable as a name in nftables; use letters, digits, '_', '.' and '-'")
    return text


def link(text: str) -> str:
    """Return *text* as a link's name, in quotes.

    :raises ValueError: nft might read *text* as something else (``*`` is its wildcard).
    """
    if not _LINK.fullmatch(text):
        raise ValueError(f"{text!r}: not usable as a link's name in nftables; use letters, digits, '_', '.' and '-'")
    return f'"{text}"'


@functools.lru_cache(16384)
def key(types: tuple[str, ...], packed: bytes) -> str:
    """Return a set's element in nft's text form.

    :param types: nft's names of the types that make up the key.
    :param packed: the key as the kernel holds it.
    """
    parts, start = [], 0
    for type_ in types:
        parts.append(_part(type_, packed[start : start + _SIZES[type_]]))
        start += _SIZES[type_]
    if start != len(packed):
        raise ValueError(f"a key has {len(packed)} bytes, but its types {types} need {start}")
    return " . ".join(parts)


def _part(type_: str, packed: bytes) -> str:
    if type_ == "ifname":
        return link(packed.rstrip(b"\0").decode())
    if type_ == "ether_addr":
        return packed[:6].hex(":")
    if type_ == "inet_proto":
        return str(packed[0])
    if type_ == "inet_service":
        return str(int.from_bytes(packed[:2], "big"))
    return str(ipaddress.ip_address(packed))


def elements(types: tuple[str, ...], of: Mapping[bytes, Verdict | None]) -> str:
    """Return the elements of a set or map in nft's text form."""
    written = []
    for packed, said in of.items():
        text = key(types, packed)
        written.append(text if said is None else f"{text} : {_VERDICTS[said[0]]} {name(said[1])}")
    return f"{{ {', '.join(written)} }}"


def at(header: str, offset: int, value: bytes, *, negate: bool = False) -> str:
    """Return the match for packets with the bytes *value* at an offset of a header.

    :param header: ``link`` or ``network``.
    """
    return f"{_place(header, offset, len(value))}{' !=' if negate else ''} 0x{value.hex()}"


def longer(header: str, offset: int, size: int, than: int) -> str:
    """Return the match for packets whose number at an offset of a header is greater than *than*.

    :param header: ``link`` or ``network``.
    :param size: the bytes of the number.
    """
    return f"{_place(header, offset, size)} > {than}"


def write(header: str, offset: int, data: bytes) -> str:
    """Return statements that write *data* into a packet, at an offset of a header.

    No checksum is updated: nft does that only for named fields.
    """
    parts = [(start, data[start : start + _WRITTEN]) for start in range(0, len(data), _WRITTEN)]
    return " ".join(f"{_place(header, offset + start, len(part))} set 0x{part.hex()}" for start, part in parts)


def _place(header: str, offset: int, size: int) -> str:
    return f"{_HEADERS[header]},{8 * offset},{8 * size}"
