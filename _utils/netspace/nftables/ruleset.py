"""The nftables ruleset of a network namespace: loads text, and computes digests of a table as the kernel holds it.

libnftables loads text. This module sends queries by netlink, for speed. The query for the ruleset's generation, a
number that the kernel increments at every change, takes 0.04 ms. libnftables would list the whole ruleset, which takes
longer than a whole apply that finds nothing to do.

Sources: ``linux/netfilter/nf_tables.h``, ``linux/netfilter/nfnetlink.h``.
"""

from __future__ import annotations

import errno
import hashlib
import socket
import struct
from collections.abc import Mapping
from typing import NamedTuple

from netspace.netlink.connection import DUMP, NETLINK_NETFILTER, Message, Socket, attribute
from netspace.netlink.reading import attributes
from netspace.nftables import library
from netspace.nftables.words import Verdict

FAMILIES = {"inet": 1, "netdev": 5}

_SUBSYSTEM = 10 << 8
_GETTABLE, _GETCHAIN, _GETRULE, _GETSET, _GETELEMENT, _GETGEN, _GETOBJECT = 1, 4, 7, 10, 13, 16, 19

# For each kind of object that the kernel lists, the attributes that the kernel itself fills in (handles, counters):
# they aren't compared. Tables come first.
_LISTED = {_GETTABLE: (3, 4), _GETCHAIN: (2, 6, 8), _GETOBJECT: (5, 6), _GETSET: (10, 16, 20), _GETRULE: (3, 6, 9)}
_FLAGS, _DYNAMIC = 3, 0x20  # a set's flags, and the flag of a set that packets fill
_ELEMENT = (3, 4, 6, 7, 9, 10, 11)  # attributes of an element besides key and value
_KEY, _EXPIRATION, _EXPRESSION, _EXPRESSIONS = 1, 5, 7, 11  # attributes of an element: NFTA_SET_ELEM_*

KEPT = 30 * 24 * 3600
"""Seconds after which the kernel removes an element of a set that counts."""


class Counted(NamedTuple):
    """An element of a set that counts packets.

    :param key: the element's key, as the kernel holds it.
    :param packets: the number of packets with this key.
    :param first: milliseconds since the first of these packets.
    :param last: milliseconds since the last of these packets.
    """

    key: bytes
    packets: int
    first: int
    last: int


class Ruleset:
    """The nftables ruleset of one network namespace: the namespace of the thread that creates and uses this object.

    :raises OSError: the kernel has no nftables.
    """

    def __init__(self) -> None:
        self._socket = Socket(NETLINK_NETFILTER)
        self._removed = False

    def __enter__(self) -> Ruleset:
        return self

    def __exit__(self, *_: object) -> None:
        library.close(self._socket.close, removed=self._removed)

    def generation(self) -> int | None:
        """Return the ruleset's generation, which the kernel increments at every change; None without nftables."""
        try:
            for payload in self._socket.dump(Message(_SUBSYSTEM | _GETGEN, 0, struct.pack("=BBH", 0, 0, 0))):
                for type_, value in attributes(payload, 4):
                    if type_ == 1:
                        return int.from_bytes(value, "big")
        except OSError:
            return None
        return None

    def load(self, text: str, since: int | None) -> int | None:
        """Load *text* in one transaction, all or none; return the new generation.

        libnftables can't bind the transaction to a generation. So the generation is checked afterwards.

        :param since: the ruleset's generation before the call.
        :return: the new generation; None if somebody else also changed the ruleset, before the transaction or right
            after it.
        :raises NftablesError: the text was refused; nothing has changed.
        """
        removes = any(line.startswith(("delete ", "flush ")) for line in text.split("\n"))
        self._removed = self._removed or removes
        library.run(text, removes=removes)
        after = self.generation()
        return after if since is not None and after == (since + 1 & 0xFFFFFFFF or 1) else None  # it is never 0

    def listed(self, table: str, family: int = socket.AF_UNSPEC, *, elements: bool = True) -> tuple[str, str] | None:
        """Return two digests of *table* as the kernel holds it; None if there is no such table.

        The first digest covers everything but the elements of sets, the second covers these elements. Elements that
        packets have added are left out.

        :param family: list only tables of this family; AF_UNSPEC: of all families.
        :param elements: whether to compute the second digest.
        """
        structure = hashlib.sha256()
        held: dict[str, list[bytes]] = {}
        there = False
        named = table.encode() + b"\0"
        own = attribute(1, named)
        for type_, counted in _LISTED.items():
            # The kernel filters a dump by table only if the family is given.
            for body in self._socket.dump(_ask(type_, family, own if family else b"")):
                values = dict(attributes(body, 4))
                if bytes(values.get(1, b"")) != named:
                    continue
                there = True
                structure.update(body[:1])
                for key, value in values.items():
                    if key not in counted:
                        structure.update(struct.pack("=HH", key, len(value)) + value)
                if elements and type_ == _GETSET and not int.from_bytes(values.get(_FLAGS, b""), "big") & _DYNAMIC:
                    name = bytes(values[2])
                    found = held.setdefault(f"{body[0]} {name.rstrip(bytes(1)).decode()}", [])
                    for part in self._socket.dump(_ask(_GETELEMENT, body[0], own + attribute(2, name))):
                        for key, value in attributes(part, 4):
                            if key == 3:
                                found += (_told(element) for _, element in attributes(value))
            if not there:  # a dump of objects in a missing table is an error
                return None
        return structure.hexdigest(), _sum(held)

    def sets(self, table: str, family: str) -> set[str]:
        """Return the names of the sets and maps in *table* of this family; none if there is no such table."""
        named = table.encode() + b"\0"
        asked = _ask(_GETSET, FAMILIES[family], attribute(1, named))
        try:
            found = [dict(attributes(body, 4)) for body in self._socket.dump(asked)]
        except OSError as err:
            if err.errno == errno.ENOENT:
                return set()
            raise
        return {bytes(one[2]).rstrip(b"\0").decode() for one in found if bytes(one[1]) == named}

    def counted(self, table: str, family: str, name: str) -> list[Counted]:
        """Return the elements of a set that counts packets; none if there is no such set."""
        body = attribute(1, table.encode() + b"\0") + attribute(2, name.encode() + b"\0")
        found = []
        try:
            for part in self._socket.dump(_ask(_GETELEMENT, FAMILIES[family], body)):
                for type_, elements in attributes(part, 4):
                    if type_ == 3:
                        found += [_counted(element) for _, element in attributes(elements)]
        except OSError as err:
            if err.errno != errno.ENOENT:
                raise
        return [one for one in found if one.packets]

    def counts(self, table: str, family: str, name: str) -> dict[bytes, int]:
        """Return the number of packets that each element of a set has counted, by key.

        The elements have only a counter (``Collection.counting``).

        :raises OSError: there is no such set.
        """
        body = attribute(1, table.encode() + b"\0") + attribute(2, name.encode() + b"\0")
        found: dict[bytes, int] = {}
        for part in self._socket.dump(_ask(_GETELEMENT, FAMILIES[family], body)):
            for type_, elements in attributes(part, 4):
                if type_ == 3:
                    found.update(_alike(elements) or (_packets(one) for _, one in attributes(elements)))
        return found

    def confirmed(
        self, table: str, generation: int, family: int = socket.AF_UNSPEC, *, elements: bool = True
    ) -> tuple[str, str] | None:
        """Return the digests of :meth:`listed` if the ruleset is still at *generation*; else None."""
        try:
            found = self.listed(table, family, elements=elements)
        except OSError:  # the table was removed meanwhile
            return None
        return found if self.generation() == generation else None


def _ask(type_: int, family: int, body: bytes) -> Message:
    return Message(_SUBSYSTEM | type_, DUMP, struct.pack("=BBH", family, 0, 0) + body)


def elements_digest(family: str, sets: Mapping[str, Mapping[bytes, Verdict | None]]) -> str:
    """Return the digest that :meth:`Ruleset.listed` returns for a table with these elements."""
    return _sum(
        {
            f"{FAMILIES[family]} {name}": [
                key if said is None else key + struct.pack(">i", said[0]) + said[1].encode()
                for key, said in elements.items()
            ]
            for name, elements in sets.items()
        }
    )


def _told(element: memoryview) -> bytes:
    """Return a listed element in the form in which :func:`elements_digest` takes it."""
    values = dict(attributes(element))
    told = bytes(values[1][4:]) if 1 in values else b""
    if 2 in values:
        said = dict(attributes(values[2][4:]))
        told += bytes(said.get(1, b"")) + bytes(said.get(2, b"")).rstrip(b"\0")
    for key in _ELEMENT:
        if key in values:
            told += struct.pack("=HH", key, len(values[key])) + values[key]
    return told


def _counted(element: memoryview) -> Counted:
    """Return the count of an element from the kernel, whose expressions are ``counter`` and ``last``."""
    values = dict(attributes(element))
    packets, last = 0, 0
    for _, expression in attributes(values.get(_EXPRESSIONS, b"")):
        about = dict(attributes(expression))
        data = dict(attributes(about[2]))
        if bytes(about[1]) == b"counter\0":
            packets = int.from_bytes(data[2], "big")
        elif bytes(about[1]) == b"last\0" and 2 in data:
            last = int.from_bytes(data[2], "big")
    left = int.from_bytes(values.get(_EXPIRATION, b""), "big")
    return Counted(bytes(values[_KEY][4:]), packets, max(KEPT * 1000 - left, last), last)


def _packets(element: memoryview) -> tuple[bytes, int]:
    """Return the key of a listed element, and the packets that its one expression, a ``counter``, has counted."""
    values = dict(attributes(element))
    expression = dict(attributes(values[_EXPRESSION]))
    return bytes(values[_KEY][4:]), int.from_bytes(dict(attributes(expression[2]))[2], "big")


def _alike(elements: memoryview) -> list[tuple[bytes, int]] | None:
    """Return the result of :func:`_packets` for each listed element; None if not all elements have one form.

    The kernel writes all elements of such a set in one form, so one pattern reads them all, in a fraction of the time.
    """
    first = next(attributes(elements), None)
    if first is None:
        return []
    known = _packets(first[1])
    form = struct.Struct(f">12s{len(known[0])}s24s8x4sQ4s8x")  # between the values are lengths and types
    if len(elements) % form.size:
        return None
    rows = list(form.iter_unpack(elements))
    if rows[0][1::3] != known or len({(a, b, c, d) for a, _, b, c, _, d in rows}) > 1:
        return None
    return [(key, packets) for _, key, _, _, packets, _ in rows]


def _sum(elements: Mapping[str, list[bytes]]) -> str:
    found = hashlib.sha256()
    for name, listing in sorted(elements.items()):
        found.update(f"{name} {len(listing)}\n".encode())
        found.update(b"".join(sorted(listing)))
    return found.hexdigest()
