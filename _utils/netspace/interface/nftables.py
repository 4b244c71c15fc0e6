"""nf_tables by netlink: tables, chains and rules packed by hand, loaded in one transaction.

For the small tables in environments' namespaces, of which there may be a thousand: an
``nft`` process takes 6 ms for each, libnftables 0.5 ms, this 0.1 ms. The host's one big table
is text, for ``nft`` (``netspace.interface.nft``). Knows nothing of netspace, and touches no
table but those it is told.

A rule is a list of expressions, of which each loads something into register 1, compares it,
or ends the rule with what is done; nft's ``--debug=netlink`` shows the same.

Sources: ``linux/netfilter/nf_tables.h``, ``linux/netfilter/nfnetlink.h``, nft(8).
"""

from __future__ import annotations

import functools
import hashlib
import socket
import struct
from collections.abc import Iterable, Sequence

from netspace.interface import netlink
from netspace.interface.netlink import Message, attribute

INET, NETDEV = 1, 5
INPUT, FORWARD, OUTPUT = 1, 2, 3  # hooks of INET
INGRESS, EGRESS = 0, 1  # and of NETDEV
ACCEPT, DROP = 1, 0

IPV4, IPV6, ARP = 0x0800, 0x86DD, 0x0806  # linux/if_ether.h

# What can be loaded: meta and ct keys.
PROTOCOL, IIF, OIF, NFPROTO, L4PROTO = 1, 4, 5, 15, 16
STATE, DIRECTION = 0, 1
ORIGINAL, REPLY = b"\0", b"\1"
LINK, NETWORK, TRANSPORT = 0, 1, 2  # what payload offsets count from

_SUBSYSTEM = 10 << 8
_BEGIN, _END = 16, 17
_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _GETCHAIN, _NEWRULE, _GETRULE = 0, 1, 2, 3, 4, 6, 7
_NEWSET, _GETSET, _NEWELEMENT, _GETELEMENT = 9, 10, 12, 13
_CREATE, _APPEND, _DUMP = 0x400, 0x800, 0x300
_NESTED = 0x8000
_EQUAL, _UNEQUAL = 0, 1
_GOTO = -4
_REGISTER = 1
_NEW, _RELATED = 8, 4  # bits of a connection's state

# Of a set's keys: nft's number of the type (for whoever lists it), and bytes.
_KEYS = {"ipv4": (7, 4), "ipv6": (8, 16)}
_IMMEDIATE = 16  # bytes that an expression can bring along
_PORTION = 1000  # elements to a message: an attribute holds 64 KiB

# What the kernel hands out, and of each the numbers of what it counts by itself: no part of what was put in.
_LISTED = {_GETTABLE: (3, 4), _GETCHAIN: (2, 6, 8), _GETSET: (10, 16), _GETRULE: (3, 6, 9)}

Expression = bytes
# A thousand tables are made of the same few expressions.
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
def connection(key: int) -> Expression:
    return _expression("ct", attribute(2, _number(key)), attribute(1, _number(_REGISTER)))


@_remembered
def payload(base: int, offset: int, length: int) -> Expression:
    return _expression(
        "payload",
        attribute(1, _number(_REGISTER)),
        attribute(2, _number(base)),
        attribute(3, _number(offset)),
        attribute(4, _number(length)),
    )


@_remembered
def masked(mask: bytes) -> Expression:
    """Only these bits of what was loaded."""
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
def member(name: str) -> Expression:
    """Whether what was loaded is in the set *name*."""
    return _expression("lookup", attribute(1, _text(name)), attribute(2, _number(_REGISTER)))


def write(base: int, offset: int, data: bytes) -> list[Expression]:
    """Write *data* into the packet (no checksum is put right)."""
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
    """Whether more connections than *count* are open, this one included."""
    return _expression("connlimit", attribute(1, _number(count)), attribute(2, _number(1)))


@_remembered
def verdict(code: int, chain: str = "") -> Expression:
    inner = attribute(1, _number(code)) + (attribute(2, _text(chain)) if chain else b"")
    return _expression("immediate", attribute(1, _number(0)), _nest(2, _nest(2, inner)))


def goto(chain: str) -> Expression:
    return verdict(_GOTO, chain)


def forward_to(index: int) -> list[Expression]:
    """Send the frame out of the link *index*, past everything else."""
    return [
        _expression("immediate", attribute(1, _number(_REGISTER)), _value(2, struct.pack("=I", index))),
        _expression("fwd", attribute(1, _number(_REGISTER))),
    ]


def is_(key: int, data: bytes, *, negate: bool = False) -> list[Expression]:
    return [meta(key), equal(data, negate=negate)]


def in_state(bits: int) -> list[Expression]:
    """Whether a connection is in any of these states."""
    return [connection(STATE), masked(struct.pack("=I", bits)), equal(bytes(4), negate=True)]


def new() -> list[Expression]:
    return in_state(_NEW)


def related() -> list[Expression]:
    return in_state(_RELATED)


# -- tables --------------------------------------------------------------------------
def _message(type_: int, family: int, flags: int, *attributes: bytes) -> Message:
    return Message(_SUBSYSTEM | type_, flags, struct.pack("=BBH", family, 0, 0) + b"".join(attributes))


def add_table(family: int, table: str) -> list[Message]:
    return [_message(_NEWTABLE, family, _CREATE, attribute(1, _text(table)))]


def remove_table(family: int, table: str) -> list[Message]:
    """No table, whether there was one or not."""
    name = attribute(1, _text(table))
    return [_message(_NEWTABLE, family, _CREATE, name), _message(_DELTABLE, family, 0, name)]


def add_chain(family: int, table: str, chain: str) -> Message:
    return _message(_NEWCHAIN, family, _CREATE, attribute(1, _text(table)), attribute(3, _text(chain)))


def add_base(family: int, table: str, chain: str, hook: int, *, device: str = "", policy: int = DROP) -> Message:
    """A chain that the kernel sends packets to: of an INET hook, or of a device."""
    place = attribute(1, _number(hook)) + attribute(2, _number(0))
    if device:
        place += attribute(3, _text(device))
    return _message(
        _NEWCHAIN,
        family,
        _CREATE,
        attribute(1, _text(table)),
        attribute(3, _text(chain)),
        _nest(4, place),
        attribute(5, _number(policy)),
        attribute(7, _text("filter")),
    )


def add_rule(family: int, table: str, chain: str, expressions: Iterable[Expression]) -> Message:
    return _message(
        _NEWRULE,
        family,
        _CREATE | _APPEND,
        attribute(1, _text(table)),
        attribute(2, _text(chain)),
        _nest(4, *expressions),
    )


def add_set(family: int, table: str, name: str, key: str, elements: Sequence[bytes]) -> list[Message]:
    """A set of addresses (*key*: ``ipv4`` or ``ipv6``)."""
    type_, length = _KEYS[key]
    where = attribute(1, _text(table)) + attribute(2, _text(name))
    made = [
        _message(
            _NEWSET,
            family,
            _CREATE,
            where,
            attribute(3, _number(0)),
            attribute(4, _number(type_)),
            attribute(5, _number(length)),
            attribute(10, _number(1)),
        )
    ]
    for start in range(0, len(elements), _PORTION):
        listed = (_nest(1, _value(1, element)) for element in elements[start : start + _PORTION])
        made.append(_message(_NEWELEMENT, family, _CREATE, where, _nest(3, *listed)))
    return made


def digest(messages: Sequence[Message]) -> str:
    return hashlib.sha256(b"".join(message.body for message in messages)).hexdigest()


# -- the calling thread's namespace ------------------------------------------------------
def load(messages: Sequence[Message]) -> int:
    """Do all of *messages*, or nothing; return the ruleset's generation afterwards.

    :raises netlink.NetlinkError: with the first refusal.
    """
    with netlink.Socket(netlink.NETLINK_NETFILTER) as where:
        frame = struct.pack("=BBH", socket.AF_UNSPEC, 0, socket.htons(_SUBSYSTEM >> 8))
        begin, end = Message(_BEGIN, 0, frame), Message(_END, 0, frame)
        failure = where.transaction([begin, *messages, end])
        if failure is not None:
            raise netlink.NetlinkError(failure.code, str(failure))
    return netlink.ruleset_generation() or 0


def listed(table: str) -> str:
    """A digest of what the kernel holds as *table*, in whatever families."""
    found = hashlib.sha256()

    def note(body: bytes, counted: Sequence[int]) -> None:
        found.update(body[:1])
        for key, value in netlink.attributes(body, 4):
            if key not in counted:
                found.update(struct.pack("=HH", key, len(value)) + value)

    with netlink.Socket(netlink.NETLINK_NETFILTER) as where:
        for type_, counted in _LISTED.items():
            for body in where.dump(_message(type_, socket.AF_UNSPEC, _DUMP)):
                values = dict(netlink.attributes(body, 4))
                if bytes(values.get(1, b"")) != _text(table):
                    continue
                note(body, counted)
                if type_ == _GETSET:
                    owner = attribute(1, _text(table)) + attribute(2, bytes(values[2]))
                    elements: set[bytes] = set()
                    for part in where.dump(_message(_GETELEMENT, body[0], _DUMP, owner)):
                        for key, value in netlink.attributes(part, 4):
                            if key == 3:
                                elements.update(bytes(element) for _, element in netlink.attributes(value))
                    for element in sorted(elements):
                        found.update(element)
    return found.hexdigest()
