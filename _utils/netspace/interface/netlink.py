"""Netlink sockets: many messages in one system call, answers as plain values.

Covers links, addresses and routes as far as interfaces need them, and knows nothing of
netspace. Messages are packed by hand, to make a thousand interfaces fast: with pyroute2's
message classes the packing takes longer than the kernel's own work, and importing them
alone takes 0.2 s.

The kernel's answers are parsed strictly: malformed data is an error, never a guess.

Sources: RFC 3549, netlink(7), rtnetlink(7), and the kernel's ``linux/rtnetlink.h``,
``linux/if_link.h``, ``linux/veth.h``, ``linux/genetlink.h``, ``linux/netfilter/nf_tables.h``.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TypeVar

import msgspec

T = TypeVar("T")

# -- constants of the kernel's headers -------------------------------------------
NETLINK_ROUTE, NETLINK_NETFILTER, NETLINK_GENERIC = 0, 12, 16
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h
_SOL_NETLINK, _CAP_ACK, _EXT_ACK, _STRICT = 270, 10, 11, 12

_REQUEST, _MULTI, _ACK, _DUMP_INTERRUPTED = 0x1, 0x2, 0x4, 0x10
_ACK_CAPPED, _ACK_TLVS = 0x100, 0x200
_DUMP, _REPLACE, _EXCLUSIVE, _CREATE = 0x300, 0x100, 0x200, 0x400
_ERROR, _DONE = 2, 3

# The answers of a kernel that lacks the requested kind of link or rule.
UNSUPPORTED = (errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)

_NEWLINK, _DELLINK, _GETLINK, _SETLINK = 16, 17, 18, 19
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_NEWQDISC, _DELQDISC, _GETQDISC = 36, 37, 38
_CONTROL, _GETFAMILY, _FAMILY_ID, _FAMILY_NAME = 16, 3, 1, 2  # linux/genetlink.h

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_QDISC, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 5, 6, 10, 18
_IFLA_IFALIAS, _IFLA_AF_SPEC, _IFLA_GROUP, _IFLA_NET_NS_FD, _IFLA_EXT_MASK = 20, 26, 27, 28, 29
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_INFO_SLAVE_KIND, _IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
_VETH_INFO_PEER = 1
_IFLA_INET_CONF, _IFLA_INET6_CONF, _IFLA_INET6_ADDR_GEN_MODE = 1, 2, 8
_SKIP_STATISTICS = 1 << 3
_ADDR_GEN_NONE = 1
_INET6_ACCEPT_RA = 3

_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_NODAD, _IFA_F_NOPREFIXROUTE = 0x02, 0x200

_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC = 1, 4, 5, 7
_RT_TABLE_MAIN, _RTN_UNICAST = 254, 1
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_NOWHERE = 0, 253, 255
_ONLINK = 4

_TCA_KIND, _TCA_OPTIONS, _TCA_TBF_PARMS, _TCA_TBF_RATE64, _TCA_TBF_BURST = 1, 2, 1, 4, 6
_TC_ROOT, _TC_HANDLE = 0xFFFFFFFF, 1 << 16

IFF_UP, IFF_NOARP = 0x1, 0x80

# The protocol number of netspace's routes (free for users, see rt_protos of iproute2), so that
# the kernel can select them among a million other routes.
ROUTE_PROTOCOL = 110

# Names of the kernel's IPv4 settings of one interface, by their number (linux/ip.h).
IPV4_SETTINGS = {
    "forwarding": 1,
    "proxy_arp": 3,
    "accept_redirects": 4,
    "secure_redirects": 5,
    "send_redirects": 6,
    "rp_filter": 8,
    "accept_source_route": 9,
    "accept_local": 23,
    "route_localnet": 26,
}
_IPV4_NAMES = {number: name for name, number in IPV4_SETTINGS.items()}

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")
_LINK = struct.Struct("=BxHiII")  # ifinfomsg
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg
_TRAFFIC = struct.Struct("=BxxxiIII")  # tcmsg
_TBF = struct.Struct("=BBHhHIBBHhHIIII")  # tc_tbf_qopt: two tc_ratespec, limit, buffer, mtu
_CODE = struct.Struct("=i")
_U32 = struct.Struct("=I")
# The kernel sends at most 32 kB at once. For a buffer above 128 kB, malloc would map and unmap memory each time.
_RECEIVE = 1 << 16
# Messages per send. The socket's buffers are the bound, above all the receive buffer, which must hold all errors.
_BATCH = 128

FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}


class Message(msgspec.Struct, frozen=True):
    """One request without its sequence number; ``protocol`` is the netlink protocol of the socket for it."""

    type: int
    flags: int
    body: bytes
    protocol: int = NETLINK_ROUTE


class Failure(msgspec.Struct, frozen=True):
    """The kernel's answer to a message that it refused."""

    code: int
    text: str = ""

    def __str__(self) -> str:
        return f"{os.strerror(self.code)} ({self.text})" if self.text else os.strerror(self.code)


class NetlinkError(OSError):
    """A request that couldn't be sent, a malformed answer, or a dump that failed."""


class Link(msgspec.Struct, frozen=True):
    """One link as the kernel reports it; ``ipv4`` and ``accept_ra`` are its settings, ``queue`` its root qdisc.

    :param parent: index of the link below it (IFLA_LINK), possibly in another namespace.
    :param master: index of the bridge, or similar device, that it is a port of.
    :param data: attributes special to the link's kind, by number (IFLA_INFO_DATA).
    :param port: attributes of the port, by number, if the link has a master (IFLA_INFO_SLAVE_DATA).
    """

    index: int
    name: str
    up: bool
    arp: bool
    mtu: int
    mac: str = ""
    alias: str = ""
    kind: str = ""
    group: int = 0
    addr_gen: int = 0
    accept_ra: int | None = None
    ipv4: Mapping[str, int] = msgspec.field(default_factory=dict)
    queue: str = ""
    parent: int = 0
    master: int = 0
    data: Mapping[int, bytes] = msgspec.field(default_factory=dict)
    port: Mapping[int, bytes] = msgspec.field(default_factory=dict)


class Address(msgspec.Struct, frozen=True):
    """One address of a link; ``text`` is ``address/prefix``."""

    index: int
    text: str


class Route(msgspec.Struct, frozen=True):
    """One route out of a link, in the main table.

    :param destination: network; ``0.0.0.0/0`` and ``::/0`` are the default route.
    :param via: gateway, assumed to be on the link.
    :param source: preferred source address.
    """

    destination: str
    via: str = ""
    source: str = ""

    def __str__(self) -> str:
        text = self.destination
        text += f" via {self.via}" if self.via else ""
        return text + (f" src {self.source}" if self.source else "")


_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")  # by length modulo 4
_NOTHING = memoryview(b"")


# -- packing -------------------------------------------------------------------------
def attribute(type_: int, value: bytes) -> bytes:
    """Return one attribute, padded to four bytes."""
    length = len(value)
    return _ATTRIBUTE.pack(4 + length, type_) + value + _PADDING[length & 3]


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


def _mac(value: str) -> bytes:
    return bytes.fromhex(value.replace(":", ""))


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _split(network: str) -> tuple[int, bytes, int]:
    address, _, prefix = network.partition("/")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address), int(prefix)


def add_veth(
    name: str, mac: str, mtu: int, peer_name: str, peer_mac: str, peer_netns: int, *, index: int = 0, arp: bool = False
) -> Message:
    """Return the message that creates a veth pair.

    The end *name* is in the socket's namespace, its peer in that of the descriptor *peer_netns*.
    """
    flags = 0 if arp else IFF_NOARP
    change = IFF_NOARP
    peer = (
        _LINK.pack(0, 0, 0, flags, change)
        + attribute(_IFLA_IFNAME, _text(peer_name))
        + attribute(_IFLA_ADDRESS, _mac(peer_mac))
        + attribute(_IFLA_MTU, _U32.pack(mtu))
        + attribute(_IFLA_NET_NS_FD, _U32.pack(peer_netns))
    )
    body = (
        _LINK.pack(0, 0, index, flags, change)
        + attribute(_IFLA_IFNAME, _text(name))
        + attribute(_IFLA_ADDRESS, _mac(mac))
        + attribute(_IFLA_MTU, _U32.pack(mtu))
        + attribute(
            _IFLA_LINKINFO,
            attribute(_IFLA_INFO_KIND, b"veth") + attribute(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, peer)),
        )
    )
    return Message(_NEWLINK, _CREATE | _EXCLUSIVE, body)


def add_link(
    kind: str,
    name: str,
    *,
    mtu: int,
    mac: str = "",
    arp: bool = True,
    parent: int = 0,
    data: bytes = b"",
    namespace: int | None = None,
) -> Message:
    """Return the message that creates a link of *kind*, down, in the namespace of the descriptor *namespace*.

    :param parent: index of the link below it, in the socket's namespace. A tunnel sends its packets
        from that namespace, too.
    :param data: attributes special to the kind.
    """
    body = _LINK.pack(0, 0, 0, 0 if arp else IFF_NOARP, IFF_NOARP) + attribute(_IFLA_IFNAME, _text(name))
    if mac:
        body += attribute(_IFLA_ADDRESS, _mac(mac))
    body += attribute(_IFLA_MTU, _U32.pack(mtu))
    if parent:
        body += attribute(_IFLA_LINK, _U32.pack(parent))
    if namespace is not None:
        body += attribute(_IFLA_NET_NS_FD, _U32.pack(namespace))
    return Message(_NEWLINK, _CREATE | _EXCLUSIVE, body + _information(kind, data))


def _information(kind: str, data: bytes) -> bytes:
    about = attribute(_IFLA_INFO_KIND, kind.encode())
    return attribute(_IFLA_LINKINFO, about + (attribute(_IFLA_INFO_DATA, data) if data else b""))


def change_link(index: int, kind: str, data: bytes) -> Message:
    """Return the message that changes the attributes special to a link's kind."""
    return Message(_NEWLINK, 0, _LINK.pack(0, 0, index, 0, 0) + _information(kind, data))


def join(index: int, master: int) -> Message:
    """Return the message that makes a link a port of *master*."""
    return Message(_SETLINK, 0, _LINK.pack(0, 0, index, 0, 0) + attribute(_IFLA_MASTER, _U32.pack(master)))


def change_port(index: int, kind: str, data: bytes) -> Message:
    """Return the message that changes the attributes of a port; *kind* is its master's kind."""
    about = attribute(_IFLA_INFO_SLAVE_KIND, kind.encode()) + attribute(_IFLA_INFO_SLAVE_DATA, data)
    return Message(_NEWLINK, 0, _LINK.pack(0, 0, index, 0, 0) + attribute(_IFLA_LINKINFO, about))


def set_link(
    index: int,
    *,
    up: bool | None = None,
    arp: bool | None = None,
    name: str | None = None,
    mac: str | None = None,
    mtu: int | None = None,
    alias: str | None = None,
    group: int | None = None,
    addr_gen_none: bool = False,
    ipv4: Mapping[str, int] | None = None,
) -> Message:
    """Return the message that changes a link; a parameter of None stays unchanged.

    In one message the kernel sets flags before ``addr_gen_none``. So send ``addr_gen_none`` first, then ``up``.
    """
    flags = change = 0
    if up is not None:
        change, flags = change | IFF_UP, flags | (IFF_UP if up else 0)
    if arp is not None:
        change, flags = change | IFF_NOARP, flags | (0 if arp else IFF_NOARP)
    body = _LINK.pack(0, 0, index, flags, change)
    if name is not None:
        body += attribute(_IFLA_IFNAME, _text(name))
    if mac is not None:
        body += attribute(_IFLA_ADDRESS, _mac(mac))
    if mtu is not None:
        body += attribute(_IFLA_MTU, _U32.pack(mtu))
    if alias is not None:
        body += attribute(_IFLA_IFALIAS, alias.encode())
    if group is not None:
        body += attribute(_IFLA_GROUP, _U32.pack(group))
    families = b""
    if ipv4:
        settings = b"".join(attribute(IPV4_SETTINGS[key], _U32.pack(value)) for key, value in ipv4.items())
        families += attribute(socket.AF_INET, attribute(_IFLA_INET_CONF, settings))
    if addr_gen_none:
        families += attribute(socket.AF_INET6, attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes([_ADDR_GEN_NONE])))
    if families:
        body += attribute(_IFLA_AF_SPEC, families)
    return Message(_SETLINK, 0, body)


def delete_group(group: int) -> Message:
    """Return the message that deletes all links of *group*. The kernel then waits for readers once, not per link."""
    return Message(_DELLINK, 0, _LINK.pack(0, 0, 0, 0, 0) + attribute(_IFLA_GROUP, _U32.pack(group)))


def delete_link(index: int) -> Message:
    """Return the message that deletes one link."""
    return Message(_DELLINK, 0, _LINK.pack(0, 0, index, 0, 0))


def _address(type_: int, flags: int, index: int, address: str) -> Message:
    family, packed, prefix = _split(address)
    kept = _IFA_F_NOPREFIXROUTE | (_IFA_F_NODAD if family == socket.AF_INET6 else 0)
    body = (
        _ADDRESS.pack(family, prefix, 0, _SCOPE_UNIVERSE, index)
        + attribute(_IFA_LOCAL, packed)
        + attribute(_IFA_ADDRESS, packed)
        + attribute(_IFA_FLAGS, _U32.pack(kept))
    )
    return Message(type_, flags, body)


def add_address(index: int, address: str) -> Message:
    """Return the message that adds an address, without duplicate detection and without a route to its prefix."""
    return _address(_NEWADDR, _CREATE | _REPLACE, index, address)


def delete_address(index: int, address: str) -> Message:
    return _address(_DELADDR, 0, index, address)


def _route(type_: int, flags: int, index: int, route: Route) -> Message:
    family, packed, prefix = _split(route.destination)
    adding = type_ == _NEWROUTE
    scope = (_SCOPE_UNIVERSE if route.via else _SCOPE_LINK) if adding else _SCOPE_NOWHERE
    if family == socket.AF_INET6:
        scope = _SCOPE_UNIVERSE
    onlink = _ONLINK if route.via and adding else 0
    body = _ROUTE.pack(family, prefix, 0, 0, _RT_TABLE_MAIN, ROUTE_PROTOCOL, scope, _RTN_UNICAST, onlink)
    if prefix:
        body += attribute(_RTA_DST, packed)
    body += attribute(_RTA_OIF, _U32.pack(index))
    if route.via:
        body += attribute(_RTA_GATEWAY, _packed(route.via))
    if route.source:
        body += attribute(_RTA_PREFSRC, _packed(route.source))
    return Message(type_, flags, body)


def add_route(index: int, route: Route) -> Message:
    """Return the message that adds a route, or replaces the one to the same destination."""
    return _route(_NEWROUTE, _CREATE | _REPLACE, index, route)


def delete_route(index: int, route: Route) -> Message:
    return _route(_DELROUTE, 0, index, route)


def limit_rate(index: int, rate: int, mtu: int) -> Message:
    """Return the message that sets or changes a link's rate limit, in bits per second: tc-tbf(8).

    Packets above the rate wait in a queue, which slows a sender down before packets are dropped. The burst is
    50 ms of traffic, the queue 200 ms, and both hold at least a few packets.
    """
    octets = rate // 8
    burst = min(max(octets // 20, 4 * (mtu + 18)), 1 << 30)
    waiting = min(max(octets // 5, 16 * (mtu + 18)), 1 << 30)
    # The kernel computes the buffer, in ticks, from the burst.
    parameters = _TBF.pack(0, 1, 0, -1, 0, min(octets, 0xFFFFFFFF), 0, 0, 0, 0, 0, 0, waiting, 0, 0)
    options = attribute(_TCA_TBF_PARMS, parameters) + attribute(_TCA_TBF_BURST, _U32.pack(burst))
    if octets > 0xFFFFFFFF:
        options += attribute(_TCA_TBF_RATE64, struct.pack("=Q", octets))
    body = _TRAFFIC.pack(0, index, _TC_HANDLE, _TC_ROOT, 0)
    return Message(
        _NEWQDISC, _CREATE | _REPLACE, body + attribute(_TCA_KIND, b"tbf\0") + attribute(_TCA_OPTIONS, options)
    )


def unlimit_rate(index: int) -> Message:
    """Return the message that restores a link's default qdisc."""
    return Message(_DELQDISC, 0, _TRAFFIC.pack(0, index, 0, _TC_ROOT, 0))


def limits_rate(message: Message) -> bool:
    return message.type == _NEWQDISC


def makes_link(message: Message) -> bool:
    return message.type == _NEWLINK and bool(message.flags & _CREATE)


def forgiven(message: Message, failure: Failure) -> bool:
    """Return whether the failure only means that the object to delete no longer exists."""
    gone = {
        _DELADDR: errno.EADDRNOTAVAIL,
        _DELROUTE: errno.ESRCH,
        _DELLINK: errno.ENODEV,
        _DELQDISC: errno.ENOENT,
    }
    return gone.get(message.type) == failure.code


def generic(family: int, command: int, body: bytes, *, dump: bool = False) -> Message:
    """Return the message for a command of a generic netlink family (see :func:`generic_family`), version 1."""
    return Message(family, _DUMP if dump else 0, struct.pack("=BBH", command, 1, 0) + body, NETLINK_GENERIC)


# -- unpacking -----------------------------------------------------------------------
def bounded(parse: Callable[[bytes | memoryview], T]) -> Callable[[bytes | memoryview], T]:
    """Return *parse* wrapped so that it raises only :class:`NetlinkError` on a malformed answer."""

    @functools.wraps(parse)
    def strict(payload: bytes | memoryview) -> T:
        try:
            return parse(payload)
        except (struct.error, ValueError, TypeError, IndexError, KeyError, OverflowError) as err:
            raise NetlinkError(errno.EBADMSG, f"the kernel's answer can't be understood: {err!r}") from err

    return strict


def attributes(data: bytes | memoryview, offset: int = 0) -> Iterator[tuple[int, memoryview]]:
    """Yield the attributes in *data* from *offset* on; stop at a truncated one."""
    view = memoryview(data)
    end = len(view)
    while offset + 4 <= end:
        length, type_ = _ATTRIBUTE.unpack_from(view, offset)
        if length < 4 or offset + length > end:
            return
        yield type_ & 0x3FFF, view[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def _by_type(data: bytes | memoryview, offset: int = 0) -> dict[int, memoryview]:
    """Return the last attribute of each type.

    It repeats the code of :func:`attributes` for speed: a link has fifty attributes.
    """
    found: dict[int, memoryview] = {}
    view, unpack = memoryview(data), _ATTRIBUTE.unpack_from
    end = len(view)
    while offset + 4 <= end:
        length, type_ = unpack(view, offset)
        if length < 4 or offset + length > end:
            break
        found[type_ & 0x3FFF] = view[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def _string(value: memoryview) -> str:
    return bytes(value).rstrip(b"\0").decode(errors="replace")


def _values(nested: memoryview | None) -> dict[int, bytes]:
    return {} if nested is None else {type_: bytes(value) for type_, value in attributes(nested)}


def number(value: bytes | memoryview) -> int:
    """Return an unsigned number in the host's byte order, of any length; 0 for no bytes."""
    return int.from_bytes(value, sys.byteorder)


@bounded
def parse_link(payload: bytes | memoryview) -> Link:
    """Return the link in an RTM_NEWLINK."""
    _, _, index, flags, _ = _LINK.unpack_from(payload)
    found = _by_type(payload, _LINK.size)
    addr_gen, accept_ra = 0, None
    ipv4: dict[str, int] = {}
    for family, below in attributes(found.get(_IFLA_AF_SPEC, _NOTHING)):
        values = _by_type(below)
        if family == socket.AF_INET and _IFLA_INET_CONF in values:
            settings = memoryview(values[_IFLA_INET_CONF]).cast("i")
            ipv4 = {name: settings[number - 1] for number, name in _IPV4_NAMES.items() if number <= len(settings)}
        elif family == socket.AF_INET6:
            if _IFLA_INET6_ADDR_GEN_MODE in values:
                addr_gen = values[_IFLA_INET6_ADDR_GEN_MODE][0]
            if _IFLA_INET6_CONF in values:
                accept_ra = memoryview(values[_IFLA_INET6_CONF]).cast("i")[_INET6_ACCEPT_RA]
    information = _by_type(found.get(_IFLA_LINKINFO, _NOTHING))
    return Link(
        index=index,
        name=_string(found.get(_IFLA_IFNAME, _NOTHING)),
        up=bool(flags & IFF_UP),
        arp=not flags & IFF_NOARP,
        mtu=number(found.get(_IFLA_MTU, _NOTHING)),
        mac=bytes(found.get(_IFLA_ADDRESS, _NOTHING)).hex(":"),
        alias=_string(found.get(_IFLA_IFALIAS, _NOTHING)),
        kind=_string(information.get(_IFLA_INFO_KIND, _NOTHING)),
        group=number(found.get(_IFLA_GROUP, _NOTHING)),
        addr_gen=addr_gen,
        accept_ra=accept_ra,
        ipv4=ipv4,
        queue=_string(found.get(_IFLA_QDISC, _NOTHING)),
        parent=number(found.get(_IFLA_LINK, _NOTHING)),
        master=number(found.get(_IFLA_MASTER, _NOTHING)),
        data=_values(information.get(_IFLA_INFO_DATA)),
        port=_values(information.get(_IFLA_INFO_SLAVE_DATA)),
    )


@bounded
def parse_rate(payload: bytes | memoryview) -> tuple[int, int]:
    """Return the link's index and the rate limit in an RTM_NEWQDISC, in bits per second; 0: not a rate limit."""
    _, index, _, parent, _ = _TRAFFIC.unpack_from(payload)
    found = _by_type(payload, _TRAFFIC.size)
    if parent != _TC_ROOT or _string(found.get(_TCA_KIND, _NOTHING)) != "tbf":
        return index, 0
    options = _by_type(found.get(_TCA_OPTIONS, _NOTHING))
    if _TCA_TBF_RATE64 in options:
        return index, 8 * number(options[_TCA_TBF_RATE64])
    return index, 8 * int(_TBF.unpack_from(options[_TCA_TBF_PARMS])[5])


@bounded
def parse_address(payload: bytes | memoryview) -> Address:
    """Return the address in an RTM_NEWADDR."""
    family, prefix, _, _, index = _ADDRESS.unpack_from(payload)
    found = _by_type(payload, _ADDRESS.size)
    packed = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS, _NOTHING))
    return Address(index, f"{socket.inet_ntop(family, bytes(packed))}/{prefix}")


@bounded
def parse_route(payload: bytes | memoryview) -> tuple[int, Route]:
    """Return the outgoing link's index and the route in an RTM_NEWROUTE."""
    family, prefix = _ROUTE.unpack_from(payload)[:2]
    found = _by_type(payload, _ROUTE.size)
    none = bytes(4 if family == socket.AF_INET else 16)

    def address(type_: int) -> str:
        return socket.inet_ntop(family, bytes(found[type_])) if type_ in found else ""

    destination = f"{address(_RTA_DST) or socket.inet_ntop(family, none)}/{prefix}"
    index = number(found[_RTA_OIF]) if _RTA_OIF in found else 0
    return index, Route(destination, address(_RTA_GATEWAY), address(_RTA_PREFSRC))


# -- the socket -------------------------------------------------------------------------
def _request(message: Message, number: int, more: int = 0) -> bytes:
    flags = _REQUEST | message.flags | more
    return _HEADER.pack(_HEADER.size + len(message.body), message.type, flags, number, 0) + message.body


class Socket:
    """A netlink socket in the network namespace of the thread that creates it; it stays in that namespace."""

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._sequence = 0
        for option in (_CAP_ACK, _EXT_ACK, _STRICT):
            try:
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            except OSError:
                if option == _STRICT and protocol == NETLINK_ROUTE:
                    self._socket.close()
                    raise NetlinkError(errno.ENOPROTOOPT, "netspace needs Linux 4.20 or newer") from None

    def __enter__(self) -> Socket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def batch(self, messages: Sequence[Message]) -> dict[int, Failure]:
        """Send *messages*; return the failures, by the message's position. All other messages succeeded.

        The kernel processes every message, also after a failed one.
        """
        failures: dict[int, Failure] = {}
        for start in range(0, len(messages), _BATCH):
            part = messages[start : start + _BATCH]
            first = self._sequence + 1
            self._sequence += len(part)
            data = bytearray()
            for number, message in enumerate(part, first):
                # Only the last message requests an ACK on success, which marks the end.
                data += _request(message, number, _ACK if number == self._sequence else 0)
            self._socket.send(data)
            ended = False
            while not ended:
                for _, flags, number, payload in self._receive(_ERROR):
                    code = -_CODE.unpack_from(payload)[0]
                    if code:
                        failures[start + number - first] = Failure(code, _explanation(flags, payload))
                    ended = ended or number == self._sequence
        return failures

    def transaction(self, messages: Sequence[Message]) -> tuple[int, Failure] | None:
        """Send one transaction; return the position of the first refused message and its failure, or None.

        If a message is refused, the kernel changes nothing.

        :param messages: the first opens the transaction and the last closes it. The ACK is requested for the last
            message in between, since the kernel answers it only after the whole transaction.
        """
        first = self._sequence + 1
        self._sequence += len(messages)
        confirming = self._sequence - 1
        data = bytearray()
        for number, message in enumerate(messages, first):
            data += _request(message, number, _ACK if number == confirming else 0)
        # A transaction must be sent in one piece, which may exceed the usual limit of a socket's buffer.
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 2 * len(data))
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * len(data))
        self._socket.send(data)
        refused: tuple[int, Failure] | None = None
        while True:
            for _, flags, number, payload in self._receive(_ERROR):
                code = -_CODE.unpack_from(payload)[0]
                if code and refused is None:
                    refused = number - first, Failure(code, _explanation(flags, payload))
                # If the opening message is refused, the kernel answers nothing else.
                if number == confirming or (code and number == first):
                    return refused

    def dump(self, message: Message) -> list[bytes]:
        """Return the payloads of a dump. A dump that was interrupted by a change is requested again, up to 5 times."""
        for _ in range(5):
            found, whole = self._dump(message)
            if whole:
                break
        return found

    def _dump(self, message: Message) -> tuple[list[bytes], bool]:
        self._sequence += 1
        self._socket.send(_request(message, self._sequence))
        found: list[bytes] = []
        whole = True
        while True:
            for type_, flags, number, payload in self._receive():
                if number != self._sequence:
                    continue
                whole = whole and not flags & _DUMP_INTERRUPTED
                if type_ in (_ERROR, _DONE):
                    code = -_CODE.unpack_from(payload)[0] if len(payload) >= 4 else 0
                    if code > 0:
                        raise NetlinkError(code, str(Failure(code, _explanation(flags, payload))))
                    return found, whole
                found.append(bytes(payload))
                if not flags & _MULTI:
                    return found, whole

    def _receive(self, only: int | None = None) -> Iterator[tuple[int, int, int, memoryview]]:
        view = memoryview(self._socket.recv(_RECEIVE))
        offset = 0
        while offset + _HEADER.size <= len(view):
            length, type_, flags, number, _ = _HEADER.unpack_from(view, offset)
            if length < _HEADER.size or offset + length > len(view):
                raise NetlinkError(errno.EBADMSG, "the kernel's answer is cut short")
            if only in (None, type_):
                yield type_, flags, number, view[offset + _HEADER.size : offset + length]
            offset += (length + 3) & ~3

    def links(self) -> list[Link]:
        """Return every link of the namespace."""
        mask = attribute(_IFLA_EXT_MASK, _U32.pack(_SKIP_STATISTICS))
        return [parse_link(p) for p in self.dump(Message(_GETLINK, _DUMP, _LINK.pack(0, 0, 0, 0, 0) + mask))]

    def addresses(self) -> list[Address]:
        """Return every address of the namespace."""
        return [parse_address(p) for p in self.dump(Message(_GETADDR, _DUMP, _ADDRESS.pack(0, 0, 0, 0, 0)))]

    def routes(self, families: Iterable[int] = FAMILIES.values()) -> list[tuple[int, Route]]:
        """Return every route of netspace in the main table, with its link's index."""
        found = []
        for family in families:
            body = _ROUTE.pack(family, 0, 0, 0, _RT_TABLE_MAIN, ROUTE_PROTOCOL, 0, 0, 0)
            try:
                found += [parse_route(p) for p in self.dump(Message(_GETROUTE, _DUMP, body))]
            except NetlinkError as err:
                if err.errno != errno.ENOENT:  # the kernel creates a table with its first route
                    raise
        return found

    def rates(self) -> dict[int, int]:
        """Return the rate limit in bits per second of each limited link, by the link's index."""
        body = _TRAFFIC.pack(0, 0, 0, 0, 0)
        found = dict(parse_rate(payload) for payload in self.dump(Message(_GETQDISC, _DUMP, body)))
        return {index: rate for index, rate in found.items() if rate}


def _explanation(flags: int, payload: memoryview) -> str:
    """Return the kernel's error text (extended ack), or an empty one. It follows the code and the request's header."""
    if not flags & _ACK_TLVS or not flags & _ACK_CAPPED:
        return ""
    return next((_string(value) for type_, value in attributes(payload, 4 + _HEADER.size) if type_ == 1), "")


@functools.cache
def generic_family(name: str) -> int | None:
    """Return the number of a generic netlink family; None if the kernel doesn't have it."""
    body = attribute(_FAMILY_NAME, _text(name))
    try:
        with Socket(NETLINK_GENERIC) as control:
            found = control.dump(Message(_CONTROL, 0, struct.pack("=BBH", _GETFAMILY, 1, 0) + body))
    except OSError:
        return None
    return next((number(value) for one in found for type_, value in attributes(one, 4) if type_ == _FAMILY_ID), None)
