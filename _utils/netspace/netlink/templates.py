"""Templates of requests: pyroute2 encodes each shape once, and from then on only the differing values are filled in.

pyroute2 takes 50 to 200 us to encode a request, as long as the kernel takes to handle it. Filling in a template takes 1
to 3 us.

*Words* describe a request by pyroute2's names: a lower-case name is a field of the message's header, any other name is
an attribute. The value of an attribute may be words, too. A :class:`Hole` stands for a value that is filled in later.
"""

from __future__ import annotations

import functools
import socket
import struct
from collections.abc import Callable
from typing import NamedTuple, TypeGuard, Union

from netspace.netlink.message_classes import MessageClass

Source = Callable[[], "type[MessageClass]"]
"""A function of ``message_classes``, so that a class is imported only when it is needed."""


class Hole(NamedTuple):
    """The place of a value that is filled in later.

    :param size: the value's size in bytes.
    :param samples: two sample values, which pyroute2 encodes to find the place.
    """

    size: int
    samples: tuple[int | str, int | str]


class Given(NamedTuple):
    """A hole together with the bytes that fill it."""

    hole: Hole
    value: bytes


Value = Union[int, str, bytes, Hole, Given, "Words", "Items"]
Words = tuple[tuple[str, "Value"], ...]


class Items(NamedTuple):
    """The value of an attribute that holds a list. Each item is described by words."""

    of: tuple[Words, ...]


SHORT = Hole(2, (0x0101, 0x0202))
NUMBER = Hole(4, (0x01010101, 0x02020202))
MAC = Hole(6, (":".join(["01"] * 6), ":".join(["02"] * 6)))
IPV4 = Hole(4, ("1.1.1.1", "2.2.2.2"))
IPV6 = Hole(16, (":".join(["101"] * 8), ":".join(["202"] * 8)))
number = struct.Struct("=I").pack
_short, _port = struct.Struct("=H").pack, struct.Struct(">H").pack


@functools.cache
def text(size: int) -> Hole:
    """Return the hole for a text of *size* bytes. pyroute2 adds a NUL after it."""
    return Hole(size, ("a" * size, "b" * size))


def given_number(value: int) -> Given:
    return Given(NUMBER, number(value))


def given_short(value: int) -> Given:
    return Given(SHORT, _short(value))


def given_port(value: int) -> Given:
    """Return a two-byte number in network byte order, with its hole."""
    return Given(SHORT, _port(value))


def given_text(value: str) -> Given:
    raw = value.encode()
    return Given(text(len(raw)), raw)


def given_mac(value: str) -> Given:
    return Given(MAC, mac_bytes(value))


def given_address(value: str) -> Given:
    return Given(IPV6 if ":" in value else IPV4, packed(value))


def mac_bytes(value: str) -> bytes:
    return bytes.fromhex(value.replace(":", ""))


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


class Template(NamedTuple):
    """The encoded body of a request, with holes.

    :param pattern: the body as a pattern for the operator ``%``, with ``%b`` for each hole.
    :param size: the bytes of a filled body.
    """

    pattern: bytes
    size: int

    def fill(self, *values: bytes) -> bytes:
        """Return the body with *values* in its holes, in order.

        :raises ValueError: a value doesn't have the size of its hole.
        """
        made = self.pattern % values
        if len(made) != self.size:
            raise ValueError(f"{len(made)} bytes where a request of this shape has {self.size}")
        return made


def template(source: Source, words: Words) -> Template:
    """Return the template of the request that *words* describe.

    A class of pyroute2 encodes the request with both samples of each hole; bytes that differ are the holes.

    :param source: returns that class.
    :raises ValueError: the bytes that differ aren't the holes in their order.
    """
    one, other = (encode(source, words, sample) for sample in (0, 1))
    holes, end, pattern = _holes(words), 0, b""
    for hole in holes:
        start = next((at for at in range(end, len(one)) if one[at] != other[at]), len(one))
        pattern += one[end:start].replace(b"%", b"%%") + b"%b"
        end = start + hole.size
        if end > len(one) or any(one[at] == other[at] for at in range(start, end)):
            raise ValueError(f"pyroute2 encodes a value in another way than in {hole.size} bytes: {words}")
    if one[end:] != other[end:] or len(one) != len(other):
        raise ValueError(f"pyroute2 encodes the values in another order: {words}")
    return Template(pattern + one[end:].replace(b"%", b"%%"), len(one))


def encode(source: Source, words: Words, sample: int = 0) -> bytes:
    """Return the body of the request that *words* describe, with a sample value in each hole.

    :param sample: which of a hole's two samples to use: 0 or 1.
    """
    message = source()()
    for name, value in _said(words, sample).items():
        message[name] = value
    message.encode()
    return bytes(message.data[_HEADER:])


_HEADER = 16  # nlmsghdr, which the socket writes


def fill(source: Source, words: Words) -> bytes:
    """Return the body of the request that *words* describe. Values that vary between requests are :class:`Given`."""
    values: list[bytes] = []
    return _template(source, _shape(words, values)).fill(*values)


_template = functools.lru_cache(maxsize=256)(template)


def _shape(words: Words, values: list[bytes]) -> Words:
    """Return *words* with holes instead of given values; the values are appended to *values*."""
    made: list[tuple[str, Value]] = []
    for name, value in words:
        if isinstance(value, Given):
            values.append(value.value)
            value = value.hole
        elif _is_words(value):
            value = _shape(value, values)
        made.append((name, value))
    return tuple(made)


def _is_words(value: Value) -> TypeGuard[Words]:
    return type(value) is tuple


def _holes(words: Words) -> list[Hole]:
    found: list[Hole] = []
    for _, value in words:
        if isinstance(value, Hole):
            found.append(value)
        elif _is_words(value):
            found += _holes(value)
    return found


def _said(words: Words, sample: int) -> dict[str, object]:
    """Return *words* in the form that pyroute2 accepts."""
    attributes: list[tuple[str, object]] = []
    said: dict[str, object] = {"attrs": attributes}
    for name, value in words:
        known: object = value
        if isinstance(value, Given):
            raise ValueError(f"{name}: a given value is filled in, not encoded")
        if isinstance(value, Hole):
            known = value.samples[sample]
        elif isinstance(value, Items):
            known = [_said(one, sample) for one in value.of]
        elif _is_words(value):
            known = _said(value, sample)
        if name.islower():
            said[name] = known
        else:
            attributes.append((name, known))
    return said
