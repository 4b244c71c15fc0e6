"""nf_tables by netlink: tables, chains, sets and rules packed by hand, loaded in one transaction.

An ``nft`` process takes 3 to 6 ms for each load and each listing, libnftables 0.5 ms, this module 0.1 ms.
It knows nothing of netspace, and touches only the tables that its callers name. ``netspace.interface.firewall.table``
has tables as values, and the difference between two of them.

A rule is a list of expressions. Each expression loads a value into a register (1 unless given), compares
it, or ends the rule with a verdict; nft's ``--debug=netlink`` shows the same.

Sources: ``linux/netfilter/nf_tables.h``, ``linux/netfilter/nfnetlink.h``, nft(8).
"""

from __future__ import annotations

import errno
import functools
import hashlib
import socket
import struct
import threading
from collections.abc import Iterable, Mapping, Sequence

from netspace.interface.netlink.connection import NETLINK_NETFILTER, Message, Socket, attribute
from netspace.interface.netlink.reading import NetlinkError, attributes

INET, NETDEV = 1, 5
PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = 0, 1, 2, 3, 4  # hooks of INET
INGRESS, EGRESS = 0, 1  # hooks of NETDEV
ACCEPT, DROP = 1, 0

IPV4, IPV6, ARP = 0x0800, 0x86DD, 0x0806  # linux/if_ether.h

# Values that an expression can load: meta keys, then ct keys.
PROTOCOL, IIF, OIF, IIFNAME, OIFNAME, IIFTYPE, NFPROTO, L4PROTO = 1, 4, 5, 6, 7, 8, 15, 16
STATE, DIRECTION, STATUS, TO_PORT, TO_IPV4, TO_IPV6 = 0, 1, 2, 12, 20, 22
ORIGINAL, REPLY = b"\0", b"\1"
LINK, NETWORK, TRANSPORT = 0, 1, 2  # headers from which payload offsets count

_SUBSYSTEM = 10 << 8
_BEGIN, _END = 16, 17
_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _GETCHAIN, _DELCHAIN = 0, 1, 2, 3, 4, 5
_NEWRULE, _GETRULE, _DELRULE, _NEWSET, _GETSET, _DELSET = 6, 7, 8, 9, 10, 11
_NEWELEMENT, _GETELEMENT, _DELELEMENT, _NEWOBJECT, _GETOBJECT, _DELOBJECT = 12, 13, 14, 18, 19, 20
_REMOVALS = frozenset({_DELTABLE, _DELCHAIN, _DELRULE, _DELSET, _DELELEMENT, _DELOBJECT})
_GETGEN = _SUBSYSTEM | 16
_GENERATION = 1  # attribute of the opening message: commit only at this generation
_CREATE, _APPEND, _DUMP = 0x400, 0x800, 0x300
_NESTED = 0x8000
_EQUAL, _UNEQUAL = 0, 1
_JUMP, _GOTO = -3, -4
_REGISTER = 1
# Registers for concatenated keys, of 16 bytes: the second one, after an interface's name, and the third quarter of
# the second, after a MAC.
SECOND, SECOND_THIRD = 2, 14
# The second and third quarter of the first register: after a protocol, and after a port.
FIRST_SECOND, FIRST_THIRD = 9, 10
_NEW, _RELATED = 8, 4  # bits of a connection's state
_TRANSLATED = 0x20  # bit of a connection's status: its destination was translated
_DNAT, _PORT_GIVEN = 1, 2  # linux/netfilter/nf_nat.h
_FIB_SOURCE, _FIB_DESTINATION, _FIB_TYPE, _LOCAL = 1, 2, 3, 2
_TIMEOUT = 7  # the number of that kind of object

# Types of a set's keys: nft's number of the type (nft shows the keys by it), and bytes.
_KEYS = {"ipv4": (7, 4), "ipv6": (8, 16)}
_IMMEDIATE = 16  # bytes of data in one immediate expression
_PORTION = 400  # elements per message: an attribute holds 64 KiB

# For each kind of object that the kernel lists, the attributes that the kernel itself fills in (handles, counters):
# they aren't compared. Tables come first.
_LISTED = {_GETTABLE: (3, 4), _GETCHAIN: (2, 6, 8), _GETOBJECT: (5, 6), _GETSET: (10, 16, 20), _GETRULE: (3, 6, 9)}
_FLAGS, _DYNAMIC = 3, 0x20  # a set's flags, and the flag of a set that packets fill
_ELEMENT = (3, 4, 6, 7, 9, 10, 11)  # attributes of an element besides key and value
_TRIES = 20
_WORDS = {
    _NEWTABLE: "table",
    _DELTABLE: "removal of the table",
    _NEWCHAIN: "chain",
    _DELCHAIN: "removal of chain",
    _NEWRULE: "rule in chain",
    _DELRULE: "removal of the rules in chain",
    _NEWSET: "set",
    _DELSET: "removal of set",
    _NEWELEMENT: "element of set",
    _DELELEMENT: "removal of an element of set",
    _NEWOBJECT: "timeout",
    _DELOBJECT: "removal of timeout",
}

Expression = bytes
# A thousand tables consist of the same few expressions.
_remembered = functools.lru_cache(4096)


def _number(value: int) -> bytes:
    return struct.pack(">I", value & 0xFFFFFFFF)


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


def _nest(type_: int, *inner: bytes) -> bytes:
    return attribute(type_ | _NESTED, b"".join(inner))


def _value(type_: int, data: bytes) -> bytes:
    return _nest(type_, attribute(1, data))


# -- expressions ---------------------------------------------------------------------
def _expression(name: str, *attributes: bytes) -> Expression:
    return _nest(1, attribute(1, _text(name)), _nest(2, *attributes))


@_remembered
def meta(key: int) -> Expression:
    return _expression("meta", attribute(2, _number(key)), attribute(1, _number(_REGISTER)))


@_remembered
def connection(key: int, *, original: bool = False) -> Expression:
    """Load a value of the packet's connection; with *original*, the value of its original direction."""
    way = [attribute(3, ORIGINAL)] if original else []
    return _expression("ct", attribute(2, _number(key)), attribute(1, _number(_REGISTER)), *way)


@_remembered
def payload(base: int, offset: int, length: int, register: int = _REGISTER) -> Expression:
    return _expression(
        "payload",
        attribute(1, _number(register)),
        attribute(2, _number(base)),
        attribute(3, _number(offset)),
        attribute(4, _number(length)),
    )


@_remembered
def masked(mask: bytes) -> Expression:
    """Keep only these bits of the loaded value."""
    return _expression(
        "bitwise",
        attribute(1, _number(_REGISTER)),
        attribute(2, _number(_REGISTER)),
        attribute(3, _number(len(mask))),
        _value(4, mask),
        _value(5, bytes(len(mask))),
    )


@_remembered
def equal(data: bytes, *, negate: bool = False) -> Expression:
    operation = _UNEQUAL if negate else _EQUAL
    return _expression("cmp", attribute(1, _number(_REGISTER)), attribute(2, _number(operation)), _value(3, data))


@_remembered
def between(first: bytes, last: bytes) -> Expression:
    return _expression(
        "range", attribute(1, _number(_REGISTER)), attribute(2, _number(_EQUAL)), _value(3, first), _value(4, last)
    )


@_remembered
def member(name: str, *, negate: bool = False) -> Expression:
    """Match if the loaded value is in the set *name*; with *negate* if it isn't."""
    inverted = [attribute(5, _number(1))] if negate else []
    return _expression("lookup", attribute(1, _text(name)), attribute(2, _number(_REGISTER)), *inverted)


@_remembered
def by_map(name: str) -> Expression:
    """Apply the verdict that the map *name* has for the loaded value; without one, continue with the next rule."""
    return _expression("lookup", attribute(1, _text(name)), attribute(2, _number(_REGISTER)), attribute(3, _number(0)))


@_remembered
def use_timeout(name: str) -> Expression:
    return _expression("objref", attribute(1, _number(_TIMEOUT)), attribute(2, _text(name)))


MASQUERADE = _expression("masq")


def masquerade_from(first: int, last: int) -> list[Expression]:
    """Masquerade, and translate the source port to one of this range; for TCP and UDP alone."""
    return [
        _expression("immediate", attribute(1, _number(_REGISTER)), _value(2, struct.pack(">H", first))),
        _expression("immediate", attribute(1, _number(SECOND)), _value(2, struct.pack(">H", last))),
        _expression(
            "masq",
            attribute(1, _number(_PORT_GIVEN)),
            attribute(2, _number(_REGISTER)),
            attribute(3, _number(SECOND)),
        ),
    ]


def write(base: int, offset: int, data: bytes) -> list[Expression]:
    """Write *data* into the packet, without updating checksums."""
    made: list[Expression] = []
    for start in range(0, len(data), _IMMEDIATE):
        part = data[start : start + _IMMEDIATE]
        made += [
            _expression("immediate", attribute(1, _number(_REGISTER)), _value(2, part)),
            _expression(
                "payload",
                attribute(5, _number(_REGISTER)),
                attribute(2, _number(base)),
                attribute(3, _number(offset + start)),
                attribute(4, _number(len(part))),
                attribute(6, _number(0)),
                attribute(7, _number(0)),
                attribute(8, _number(0)),
            ),
        ]
    return made


@_remembered
def more_open_than(count: int) -> Expression:
    """Match if more than *count* connections are open, including this one."""
    return _expression("connlimit", attribute(1, _number(count)), attribute(2, _number(1)))


@_remembered
def more_open_each(name: str, count: int) -> Expression:
    """Match if the loaded value has more than *count* connections open; the dynamic set *name* counts them."""
    return _expression(
        "dynset",
        attribute(1, _text(name)),
        attribute(3, _number(0)),
        attribute(4, _number(_REGISTER)),
        attribute(7 | _NESTED, more_open_than(count)[4:]),
    )


@_remembered
def _done(code: int, chain: str) -> bytes:
    return _nest(2, _nest(2, attribute(1, _number(code)) + (attribute(2, _text(chain)) if chain else b"")))


@_remembered
def verdict(code: int, chain: str = "") -> Expression:
    return _expression("immediate", attribute(1, _number(0)), _done(code, chain))


def goto(chain: str) -> Expression:
    return verdict(_GOTO, chain)


# The value of a map's key: the verdict's code, and its chain.
Verdict = tuple[int, str]


def to_jump(chain: str) -> Verdict:
    return _JUMP, chain


def to_goto(chain: str) -> Verdict:
    return _GOTO, chain


def forward_to(index: int) -> list[Expression]:
    """Send the frame out of the link *index*; it passes no other hook."""
    return [
        _expression("immediate", attribute(1, _number(_REGISTER)), _value(2, struct.pack("=I", index))),
        _expression("fwd", attribute(1, _number(_REGISTER))),
    ]


def is_(key: int, data: bytes) -> list[Expression]:
    return [meta(key), equal(data)]


def of_protocol(ether: int) -> list[Expression]:
    """Match frames of this protocol."""
    return is_(PROTOCOL, struct.pack(">H", ether))


def not_new() -> list[Expression]:
    """Match packets whose connection isn't in the state ``new``."""
    return [connection(STATE), equal(struct.pack("=I", _NEW), negate=True)]


def related() -> list[Expression]:
    return [connection(STATE), masked(struct.pack("=I", _RELATED)), equal(bytes(4), negate=True)]


def translated() -> list[Expression]:
    """Match packets of a connection whose destination was translated (DNAT)."""
    return [connection(STATUS), masked(struct.pack("=I", _TRANSLATED)), equal(bytes(4), negate=True)]


@_remembered
def _fib_type(of: int) -> Expression:
    return _expression(
        "fib",
        attribute(1, _number(_REGISTER)),
        attribute(2, _number(_FIB_TYPE)),
        attribute(3, _number(of)),
    )


def to_own_address() -> list[Expression]:
    """Match packets to one of the host's own addresses."""
    return [_fib_type(_FIB_DESTINATION), equal(struct.pack("=I", _LOCAL))]


def from_own_address() -> list[Expression]:
    """Match packets from one of the host's own addresses."""
    return [_fib_type(_FIB_SOURCE), equal(struct.pack("=I", _LOCAL))]


def lead_to(family: int, address: bytes, port: int) -> list[Expression]:
    """Translate the destination of a new connection to this address and port (DNAT); *family* is the address's."""
    return [
        _expression("immediate", attribute(1, _number(_REGISTER)), _value(2, address)),
        _expression("immediate", attribute(1, _number(SECOND)), _value(2, struct.pack(">H", port))),
        _expression(
            "nat",
            attribute(1, _number(_DNAT)),
            attribute(2, _number(family)),
            attribute(3, _number(_REGISTER)),
            attribute(5, _number(SECOND)),
            attribute(7, _number(_PORT_GIVEN)),
        ),
    ]


# -- tables --------------------------------------------------------------------------
def _message(type_: int, family: int, flags: int, *attributes: bytes) -> Message:
    return Message(_SUBSYSTEM | type_, flags, struct.pack("=BBH", family, 0, 0) + b"".join(attributes))


def _of(table: str, name: str, type_: int = 2) -> bytes:
    """Return the attributes that name an object of a table: the table's name, and *name* as attribute *type_*."""
    return attribute(1, _text(table)) + attribute(type_, _text(name))


def add_table(family: int, table: str) -> list[Message]:
    return [_message(_NEWTABLE, family, _CREATE, attribute(1, _text(table)))]


def remove_table(family: int, table: str) -> list[Message]:
    """Return the messages that remove a table. They create it first, so that a missing table is no error."""
    name = attribute(1, _text(table))
    return [_message(_NEWTABLE, family, _CREATE, name), _message(_DELTABLE, family, 0, name)]


def add_chain(family: int, table: str, chain: str) -> Message:
    return _message(_NEWCHAIN, family, _CREATE, _of(table, chain, 3))


def add_base(
    family: int,
    table: str,
    chain: str,
    hook: int,
    *,
    device: str = "",
    policy: int = DROP,
    type_: str = "filter",
    priority: int = 0,
) -> Message:
    """Return the message that adds a base chain, at an INET hook or at a device's hook."""
    place = attribute(1, _number(hook)) + attribute(2, _number(priority))
    if device:
        place += attribute(3, _text(device))
    return _message(
        _NEWCHAIN,
        family,
        _CREATE,
        _of(table, chain, 3),
        _nest(4, place),
        attribute(5, _number(policy)),
        attribute(7, _text(type_)),
    )


def remove_chain(family: int, table: str, chain: str) -> Message:
    return _message(_DELCHAIN, family, 0, _of(table, chain, 3))


def remove_rules(family: int, table: str, chain: str) -> Message:
    """Return the message that removes all rules of a chain."""
    return _message(_DELRULE, family, 0, _of(table, chain))


def add_rule(family: int, table: str, chain: str, expressions: Iterable[Expression]) -> Message:
    return _message(
        _NEWRULE,
        family,
        _CREATE | _APPEND,
        _of(table, chain),
        _nest(4, *expressions),
    )


def add_set(family: int, table: str, name: str, key: str, elements: Sequence[bytes]) -> list[Message]:
    """Return the messages that add a set of addresses (*key*: ``ipv4`` or ``ipv6``)."""
    type_, length = _KEYS[key]
    return [
        declare_set(family, table, name, type_, length),
        *add_elements(family, table, name, dict.fromkeys(elements)),
    ]


@functools.lru_cache(maxsize=256)  # all tables declare the same few sets
def declare_set(
    family: int,
    table: str,
    name: str,
    type_: int,
    length: int,
    *,
    verdicts: bool = False,
    most: int = 0,
    about: bytes = b"",
) -> Message:
    """Return the message that adds an empty set.

    :param type_: nft's number of the keys' type.
    :param length: the keys' length in bytes.
    :param verdicts: the set is a map from keys to verdicts.
    :param most: packets add elements, at most so many; 0: they add none.
    :param about: metadata by which nft displays the set.
    """
    flags = (0x8 if verdicts else 0) | (_DYNAMIC if most else 0)
    more = [attribute(6, _number(0xFFFFFF00)), attribute(7, _number(0))] if verdicts else []
    if most:
        more.append(_nest(9, attribute(1, _number(most))))
    if about:
        more.append(attribute(13, about))
    return _message(
        _NEWSET,
        family,
        _CREATE,
        _of(table, name),
        attribute(_FLAGS, _number(flags)),
        attribute(4, _number(type_)),
        attribute(5, _number(length)),
        attribute(10, _number(1)),
        *more,
    )


def remove_set(family: int, table: str, name: str) -> Message:
    return _message(_DELSET, family, 0, _of(table, name))


def add_elements(family: int, table: str, name: str, elements: Mapping[bytes, Verdict | None]) -> list[Message]:
    return _elements(_NEWELEMENT, _CREATE, family, table, name, elements)


def remove_elements(family: int, table: str, name: str, elements: Mapping[bytes, Verdict | None]) -> list[Message]:
    return _elements(_DELELEMENT, 0, family, table, name, elements)


def _elements(
    type_: int, flags: int, family: int, table: str, name: str, elements: Mapping[bytes, Verdict | None]
) -> list[Message]:
    where = _of(table, name)
    packed = [_nest(1, _value(1, key) + (_done(*said) if said is not None else b"")) for key, said in elements.items()]
    return [
        _message(type_, family, flags, where, _nest(3, *packed[start : start + _PORTION]))
        for start in range(0, len(packed), _PORTION)
    ]


def elements_changed(old: Sequence[Message], new: Sequence[Message]) -> list[Message] | None:
    """Return the messages that change *old*'s elements into *new*'s; None if anything but elements differs."""
    (rest, before), (other_rest, after) = _apart(old), _apart(new)
    if rest != other_rest:
        return None
    made = []
    for type_, flags, from_, to in ((_DELELEMENT, 0, before, after), (_NEWELEMENT, _CREATE, after, before)):
        for where, elements in from_.items():
            differing = [_nest(1, one) for one in elements if one not in to.get(where, ())]
            for start in range(0, len(differing), _PORTION):
                body = where + _nest(3, *differing[start : start + _PORTION])
                made.append(Message(_SUBSYSTEM | type_, flags, body))
    return made


def _apart(messages: Sequence[Message]) -> tuple[list[Message], dict[bytes, dict[bytes, None]]]:
    """Return the messages that don't add elements, and the elements that the other messages add, by set."""
    rest: list[Message] = []
    elements: dict[bytes, dict[bytes, None]] = {}
    for message in messages:
        if message.type & 0xFF != _NEWELEMENT:
            rest.append(message)
            continue
        values = dict(attributes(message.body, 4))
        where = message.body[:4] + attribute(1, bytes(values[1])) + attribute(2, bytes(values[2]))
        elements.setdefault(where, {}).update((bytes(one), None) for _, one in attributes(values[3]))
    return rest, elements


def add_timeout(family: int, table: str, name: str, l3: int, l4: int, seconds: Mapping[int, int]) -> Message:
    """Return the message that adds timeouts of a protocol's connections.

    :param seconds: the timeout by state; the host's own timeout applies to other states.
    """
    return _message(
        _NEWOBJECT,
        family,
        _CREATE,
        _of(table, name),
        attribute(3, _number(_TIMEOUT)),
        _nest(
            4,
            attribute(1, struct.pack(">H", l3)),
            attribute(2, bytes([l4])),
            _nest(3, *(attribute(state, _number(value)) for state, value in seconds.items())),
        ),
    )


def remove_timeout(family: int, table: str, name: str) -> Message:
    return _message(_DELOBJECT, family, 0, _of(table, name), attribute(3, _number(_TIMEOUT)))


def digest(messages: Sequence[Message]) -> str:
    return hashlib.sha256(b"".join(message.body for message in messages)).hexdigest()


# -- the calling thread's namespace ------------------------------------------------------
class Ruleset:
    """The nftables ruleset of the network namespace of the thread that creates this object.

    :raises OSError: the kernel has no nftables.
    """

    def __init__(self) -> None:
        self._socket = Socket(NETLINK_NETFILTER)
        self._removed = False

    def __enter__(self) -> Ruleset:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._removed:
            self._socket.close()
            return
        # The removal is done. But close() on such a socket waits until no packet in flight can refer to the removed
        # objects, 10 ms and more. So another thread closes it.
        try:
            threading.Thread(target=self._socket.close, name="netspace-close").start()
        except RuntimeError:  # no more threads
            self._socket.close()

    def generation(self) -> int | None:
        """Return the ruleset's generation, which the kernel increments at every change; None without nftables."""
        try:
            for payload in self._socket.dump(Message(_GETGEN, 0, struct.pack("=BBH", 0, 0, 0))):
                for type_, value in attributes(payload, 4):
                    if type_ == 1:
                        return int.from_bytes(value, "big")
        except OSError:
            return None
        return None

    def load(self, messages: Sequence[Message], generation: int | None = None) -> int:
        """Load *messages* in one transaction, all or none; return the new generation.

        :param generation: load them only if the ruleset is at this generation.
        :raises NetlinkError: the first refusal; ERESTART if somebody else changed the ruleset.
        """
        frame = struct.pack("=BBH", socket.AF_UNSPEC, 0, socket.htons(_SUBSYSTEM >> 8))
        self._removed = self._removed or any(message.type & 0xFF in _REMOVALS for message in messages)
        for _ in range(_TRIES):
            before = generation if generation is not None else self.generation()
            only = attribute(_GENERATION, _number(before)) if before is not None else b""
            refused = self._socket.transaction([Message(_BEGIN, 0, frame + only), *messages, Message(_END, 0, frame)])
            if refused is None:
                return (before or 0) + 1 & 0xFFFFFFFF or 1  # it is never 0
            place, failure = refused
            if failure.code != errno.ERESTART or generation is not None:
                break
        about = f" ({named})" if 0 < place <= len(messages) and (named := _named(messages[place - 1])) else ""
        raise NetlinkError(failure.code, f"{failure}{about}")

    def listed(self, table: str, family: int = socket.AF_UNSPEC) -> tuple[str, str] | None:
        """Return two digests of *table* as the kernel holds it; None if there is no such table.

        The first digest covers everything but the elements of sets, the second covers these elements. Elements that
        packets have added are left out.

        :param family: list only tables of this family; AF_UNSPEC: of all families.
        """
        structure = hashlib.sha256()
        elements: dict[str, list[bytes]] = {}
        there = False
        own = attribute(1, _text(table))
        for type_, counted in _LISTED.items():
            # The kernel filters a dump by table only if the family is given.
            for body in self._socket.dump(_message(type_, family, _DUMP, own if family else b"")):
                values = dict(attributes(body, 4))
                if bytes(values.get(1, b"")) != _text(table):
                    continue
                there = True
                structure.update(body[:1])
                for key, value in values.items():
                    if key not in counted:
                        structure.update(struct.pack("=HH", key, len(value)) + value)
                if type_ == _GETSET and not int.from_bytes(values.get(_FLAGS, b""), "big") & _DYNAMIC:
                    name = bytes(values[2])
                    found = elements.setdefault(f"{body[0]} {name.rstrip(bytes(1)).decode()}", [])
                    for part in self._socket.dump(_message(_GETELEMENT, body[0], _DUMP, own + attribute(2, name))):
                        for key, value in attributes(part, 4):
                            if key == 3:
                                found += (_told(element) for _, element in attributes(value))
            if not there:  # a dump of objects in a missing table is an error
                return None
        return structure.hexdigest(), _sum(elements)

    def confirmed(self, table: str, generation: int, family: int = socket.AF_UNSPEC) -> tuple[str, str] | None:
        """Return the digests of :meth:`listed` if the ruleset is still at *generation*; else None."""
        try:
            found = self.listed(table, family)
        except OSError:  # the table was removed meanwhile
            return None
        return found if self.generation() == generation else None


def _named(message: Message) -> str:
    """Return the kind and name of a message's object, for error texts."""
    type_ = message.type & 0xFF
    values = dict(attributes(message.body, 4))
    which = 1 if type_ in (_NEWTABLE, _DELTABLE) else 3 if type_ in (_NEWCHAIN, _DELCHAIN) else 2
    name = bytes(values.get(which, b"")).rstrip(b"\0").decode(errors="replace")
    return f"{_WORDS.get(type_, '')} {name}".strip()


def elements_digest(family: int, sets: Mapping[str, Mapping[bytes, Verdict | None]]) -> str:
    """Return the digest that :meth:`Ruleset.listed` returns for a table with these elements."""
    return _sum(
        {
            f"{family} {name}": [
                key if said is None else key + _number(said[0]) + said[1].encode() for key, said in elements.items()
            ]
            for name, elements in sets.items()
        }
    )


def _told(element: memoryview) -> bytes:
    """Return an element listed by the kernel in the form that :func:`elements_digest` uses."""
    values = dict(attributes(element))
    told = bytes(values[1][4:]) if 1 in values else b""
    if 2 in values:
        said = dict(attributes(values[2][4:]))
        told += bytes(said.get(1, b"")) + bytes(said.get(2, b"")).rstrip(b"\0")
    for key in _ELEMENT:
        if key in values:
            told += struct.pack("=HH", key, len(values[key])) + values[key]
    return told


def _sum(elements: Mapping[str, list[bytes]]) -> str:
    found = hashlib.sha256()
    for name, listing in sorted(elements.items()):
        found.update(f"{name} {len(listing)}\n".encode())
        found.update(b"".join(sorted(listing)))
    return found.hexdigest()
