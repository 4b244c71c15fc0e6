"""Requests that change network devices, addresses and routes, written with pyroute2's names.

pyroute2 encodes each shape of a request once in a process; after that, only values are filled in (see ``templates``). A
cache finds the shapes that every environment needs (a pair, its addresses and routes) by a few values, and rarer shapes
by their whole description.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
from collections.abc import Mapping

from netspace.netlink import message_classes as classes
from netspace.netlink.connection import MAIN_TABLE, NETLINK_GENERIC, ROUTE_PROTOCOL, Failure, Message
from netspace.netlink.reading import IFF_NOARP, IFF_UP, Route
from netspace.netlink.templates import (
    IPV4,
    IPV6,
    MAC,
    NUMBER,
    Template,
    Value,
    Words,
    encode,
    fill,
    given_mac,
    given_number,
    given_text,
    mac_bytes,
    number,
    packed,
    template,
    text,
)

_REPLACE, _EXCLUSIVE, _CREATE = 0x100, 0x200, 0x400
_NEWLINK, _DELLINK, _SETLINK = 16, 17, 19
_NEWADDR, _DELADDR, _NEWROUTE, _DELROUTE, _NEWQDISC, _DELQDISC = 20, 21, 24, 25, 36, 37

_ADDR_GEN_NONE = 1
_IFA_F_NODAD, _IFA_F_NOPREFIXROUTE = 0x02, 0x200
_RTN_UNICAST, _ONLINK = 1, 4
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_NOWHERE = 0, 253, 255
_TC_ROOT, _TC_HANDLE = 0xFFFFFFFF, 1 << 16


# -- network devices -----------------------------------------------------------------------------
def add_veth(
    name: str, mac: str, mtu: int, peer_name: str, peer_mac: str, peer_netns: int, *, index: int = 0, arp: bool = False
) -> Message:
    """Return the request that creates a veth pair.

    The end *name* is in the socket's namespace, its peer in the namespace of the descriptor *peer_netns*.
    """
    ours, theirs, size = name.encode(), peer_name.encode(), number(mtu)
    body = _veth(len(ours), len(theirs), arp).fill(
        number(index), ours, mac_bytes(mac), size, theirs, mac_bytes(peer_mac), size, number(peer_netns)
    )
    return Message(_NEWLINK, _CREATE | _EXCLUSIVE, body)


@functools.cache
def _veth(name: int, peer: int, arp: bool) -> Template:
    flags = (("flags", 0 if arp else IFF_NOARP), ("change", IFF_NOARP))
    other: Words = (
        *flags,
        ("IFLA_IFNAME", text(peer)),
        ("IFLA_ADDRESS", MAC),
        ("IFLA_MTU", NUMBER),
        ("IFLA_NET_NS_FD", NUMBER),
    )
    words: Words = (
        ("index", NUMBER),
        *flags,
        ("IFLA_IFNAME", text(name)),
        ("IFLA_ADDRESS", MAC),
        ("IFLA_MTU", NUMBER),
        _information("veth", (("VETH_INFO_PEER", other),)),
    )
    return template(classes.link, words)


def _information(kind: str, data: Words) -> tuple[str, Value]:
    about: Words = (("IFLA_INFO_KIND", kind),)
    return "IFLA_LINKINFO", (*about, ("IFLA_INFO_DATA", data)) if data else about


def add_link(
    kind: str,
    name: str,
    *,
    mtu: int,
    mac: str = "",
    arp: bool = True,
    parent: int = 0,
    data: Words = (),
    namespace: int | None = None,
) -> Message:
    """Return the request that creates a network device of *kind* in the namespace of the descriptor *namespace*.

    The created device is down.

    :param parent: the index of the device below the new one, in the socket's namespace. A tunnel sends its packets from
        that namespace, too.
    :param data: attributes special to the kind.
    """
    words: list[tuple[str, Value]] = [
        ("flags", 0 if arp else IFF_NOARP),
        ("change", IFF_NOARP),
        ("IFLA_IFNAME", given_text(name)),
    ]
    if mac:
        words.append(("IFLA_ADDRESS", given_mac(mac)))
    words.append(("IFLA_MTU", given_number(mtu)))
    if parent:
        words.append(("IFLA_LINK", given_number(parent)))
    if namespace is not None:
        words.append(("IFLA_NET_NS_FD", given_number(namespace)))
    return Message(_NEWLINK, _CREATE | _EXCLUSIVE, fill(classes.link, (*words, _information(kind, data))))


def change_link(index: int, kind: str, data: Words) -> Message:
    """Return the request that changes those attributes of a network device that are special to its kind."""
    return _of_link(_NEWLINK, index, _information(kind, data))


def join(index: int, master: int) -> Message:
    """Return the request that makes a network device a port of *master*."""
    return _of_link(_SETLINK, index, ("IFLA_MASTER", given_number(master)))


def change_port(index: int, kind: str, data: Words) -> Message:
    """Return the request that changes a port of a bridge or similar device.

    :param kind: the kind of that device.
    """
    about: Words = (("IFLA_INFO_SLAVE_KIND", kind), ("IFLA_INFO_SLAVE_DATA", data))
    return _of_link(_NEWLINK, index, ("IFLA_LINKINFO", about))


def delete_group(group: int) -> Message:
    """Return the request that deletes all network devices of *group*.

    The kernel waits for readers once for the whole group, not once per device.
    """
    return _of_link(_DELLINK, 0, ("IFLA_GROUP", given_number(group)))


def delete_link(index: int) -> Message:
    """Return the request that deletes one network device."""
    return _of_link(_DELLINK, index)


def _of_link(type_: int, index: int, *words: tuple[str, Value]) -> Message:
    return Message(type_, 0, fill(classes.link, (("index", given_number(index)), *words)))


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
    """Return the request that changes a network device; settings whose parameter is None stay unchanged.

    In one request the kernel applies flags before ``addr_gen_none``. So send ``addr_gen_none`` in one request, and
    ``up`` in a later one.
    """
    flags = change = 0
    if up is not None:
        change, flags = change | IFF_UP, flags | (IFF_UP if up else 0)
    if arp is not None:
        change, flags = change | IFF_NOARP, flags | (0 if arp else IFF_NOARP)
    values = [number(index)]
    texts: list[tuple[str, int]] = []
    for attribute, said in (("IFLA_IFNAME", name), ("IFLA_IFALIAS", alias)):
        if said is not None:
            raw = said.encode()
            texts.append((attribute, len(raw)))
            values.append(raw)
    if mac is not None:
        values.append(mac_bytes(mac))
    numbers: list[str] = []
    for attribute, value in (("IFLA_MTU", mtu), ("IFLA_GROUP", group)):
        if value is not None:
            numbers.append(attribute)
            values.append(number(value))
    settings = tuple(ipv4.items()) if ipv4 else ()
    shape = _link(flags, change, tuple(texts), mac is not None, tuple(numbers), settings, addr_gen_none)
    return Message(_SETLINK, 0, shape.fill(*values))


@functools.lru_cache(maxsize=1024)
def _link(
    flags: int,
    change: int,
    texts: tuple[tuple[str, int], ...],
    has_mac: bool,
    numbers: tuple[str, ...],
    ipv4: tuple[tuple[str, int], ...],
    addr_gen_none: bool,
) -> Template:
    families: list[tuple[str, Value]] = []
    if ipv4:
        conf: Words = tuple((name.upper(), value) for name, value in ipv4)
        families.append(("AF_INET", (("IFLA_INET_CONF", conf),)))
    if addr_gen_none:
        families.append(("AF_INET6", (("IFLA_INET6_ADDR_GEN_MODE", _ADDR_GEN_NONE),)))
    words: list[tuple[str, Value]] = [("index", NUMBER), ("flags", flags), ("change", change)]
    words += [(name, text(size)) for name, size in texts]
    words += [("IFLA_ADDRESS", MAC)] if has_mac else []
    words += [(name, NUMBER) for name in numbers]
    words += [("IFLA_AF_SPEC", tuple(families))] if families else []
    return template(classes.link, tuple(words))


# -- addresses and routes ----------------------------------------------------------------
def _split(network: str) -> tuple[bool, bytes, int]:
    address, _, prefix = network.partition("/")
    return ":" in address, packed(address), int(prefix)


def _address(type_: int, flags: int, index: int, address: str) -> Message:
    six, raw, prefix = _split(address)
    return Message(type_, flags, _address_of(six, prefix).fill(number(index), raw, raw))


@functools.cache
def _address_of(six: bool, prefix: int) -> Template:
    ip = IPV6 if six else IPV4
    words: Words = (
        ("family", socket.AF_INET6 if six else socket.AF_INET),
        ("prefixlen", prefix),
        ("scope", _SCOPE_UNIVERSE),
        ("index", NUMBER),
        ("IFA_LOCAL", ip),
        ("IFA_ADDRESS", ip),
        ("IFA_FLAGS", _IFA_F_NOPREFIXROUTE | (_IFA_F_NODAD if six else 0)),
    )
    return template(classes.address, words)


def add_address(index: int, address: str) -> Message:
    """Return the request that adds an address, without duplicate detection and without a route to its prefix."""
    return _address(_NEWADDR, _CREATE | _REPLACE, index, address)


def delete_address(index: int, address: str) -> Message:
    """Return the request that deletes an address."""
    return _address(_DELADDR, 0, index, address)


def _route(type_: int, flags: int, index: int, route: Route) -> Message:
    six, raw, prefix = _split(route.destination)
    values = [raw] if prefix else []
    values.append(number(index))
    if route.via:
        values.append(packed(route.via))
    if route.source:
        values.append(packed(route.source))
    shape = _route_of(six, prefix, bool(route.via), bool(route.source), type_ == _NEWROUTE)
    return Message(type_, flags, shape.fill(*values))


@functools.cache
def _route_of(six: bool, prefix: int, via: bool, source: bool, adding: bool) -> Template:
    ip = IPV6 if six else IPV4
    scope = (_SCOPE_UNIVERSE if via else _SCOPE_LINK) if adding else _SCOPE_NOWHERE
    words: list[tuple[str, Value]] = [
        ("family", socket.AF_INET6 if six else socket.AF_INET),
        ("dst_len", prefix),
        ("table", MAIN_TABLE),
        ("proto", ROUTE_PROTOCOL),
        ("scope", _SCOPE_UNIVERSE if six else scope),
        ("type", _RTN_UNICAST),
        ("flags", _ONLINK if via and adding else 0),
    ]
    words += [("RTA_DST", ip)] if prefix else []
    words.append(("RTA_OIF", NUMBER))
    words += [("RTA_GATEWAY", ip)] if via else []
    words += [("RTA_PREFSRC", ip)] if source else []
    return template(classes.route, tuple(words))


def add_route(index: int, route: Route) -> Message:
    """Return the request that adds a route, or replaces the route to the same destination."""
    return _route(_NEWROUTE, _CREATE | _REPLACE, index, route)


def delete_route(index: int, route: Route) -> Message:
    """Return the request that deletes a route."""
    return _route(_DELROUTE, 0, index, route)


# -- rate limits -----------------------------------------------------------------------------
def limit_rate(index: int, rate: int, mtu: int) -> Message:
    """Return the request that sets or changes a network device's rate limit, in bits per second: tc-tbf(8).

    Packets above the rate wait in a queue, which slows a sender down before packets are dropped. The burst is
    50 ms of traffic, the queue 200 ms, and both hold at least a few packets.
    """
    octets = rate // 8
    burst = min(max(octets // 20, 4 * (mtu + 18)), 1 << 30)
    waiting = min(max(octets // 5, 16 * (mtu + 18)), 1 << 30)
    # The kernel computes the buffer, in ticks, from the burst.
    parameters: Words = (
        ("rate___reserved", 1),  # the link layer: Ethernet
        ("rate_cell_align", -1),
        ("rate", given_number(min(octets, 0xFFFFFFFF))),
        ("limit", given_number(waiting)),
    )
    options: list[tuple[str, Value]] = [("TCA_TBF_PARMS", parameters), ("TCA_TBF_BURST", given_number(burst))]
    if octets > 0xFFFFFFFF:
        options.append(("TCA_TBF_RATE64", octets))
    return _qdisc(
        _NEWQDISC,
        _CREATE | _REPLACE,
        index,
        ("handle", _TC_HANDLE),
        ("parent", _TC_ROOT),
        ("TCA_KIND", "tbf"),
        ("TCA_OPTIONS", tuple(options)),
    )


def unlimit_rate(index: int) -> Message:
    """Return the request that restores a network device's default qdisc."""
    return _qdisc(_DELQDISC, 0, index, ("parent", _TC_ROOT))


def _qdisc(type_: int, flags: int, index: int, *words: tuple[str, Value]) -> Message:
    return Message(type_, flags, fill(classes.rate_limit, (("index", given_number(index)), *words)))


# -- wireguard ---------------------------------------------------------------------------------
def set_wireguard(family: int, index: int, words: Words) -> Message:
    """Return the request that configures the WireGuard device *index*.

    :param family: the number of WireGuard's generic netlink family.
    """
    head: Words = (("cmd", 1), ("version", 1), ("WGDEVICE_A_IFINDEX", index))
    return Message(family, 0, encode(classes.wireguard, (*head, *words)), NETLINK_GENERIC)


# -- kinds of request -----------------------------------------------------------------------------
def limits_rate(message: Message) -> bool:
    """Return whether the request sets a rate limit."""
    return message.type == _NEWQDISC


def makes_link(message: Message) -> bool:
    """Return whether the request creates a network device."""
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


def free_group(used: set[int]) -> int:
    """Return the number of an unused group of network devices.

    :param used: the numbers in use.
    """
    group = int.from_bytes(os.urandom(4), "big") | 1 << 30
    while group in used:
        group = int.from_bytes(os.urandom(4), "big") | 1 << 30
    return group
