"""Kind ``tap``: Ethernet frames for the environment's own network stack: a unikernel, a virtual machine, a library.

``tap0`` in the environment's namespace belongs to the environment's user, who attaches to it by ``/dev/net/tun``
without any capability. That user can't create other interfaces, since the namespace belongs to the host. Frames written
to ``tap0`` reach the host by a veth pair as in kind ``veth``, and pass the same filter. The guest (the program with the
network stack) has the interface's MAC and addresses.

An nftables table of netspace moves frames between ``tap0`` and the pair (``fwd``), and only frames between this guest
and the gateway. A bridge in its place would learn and flood; routing would need the guest's addresses in the namespace.
ARP and neighbour discovery don't reach the host, either. The guest needs only the gateway's MAC, and the table turns
the guest's request into the answer. So a guest can neither fill nor poison the host's neighbour tables.

A guest in a domain of a hypervisor has a network device that the host's kernel makes. For such a guest (the owner is
``DOMAIN``), ``xen0`` stands in place of ``tap0``. Its peer ``xen1`` is always there. Whoever starts the domain leads
the domain's device to that peer, so the device passes the same table, and ends with the domain.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Mapping
from typing import Any, ClassVar

from msgspec.structs import replace

from netspace.interface.endpoints import INSIDE_INDEX, Endpoint, EndpointContext, Endpoints
from netspace.interface.kinds import veth
from netspace.interface.match import FAMILIES
from netspace.layout import DOMAIN, DOMAIN_LINK, DOMAIN_PEER, TAP
from netspace.netlink import reading, requests
from netspace.netlink.connection import Message, Socket
from netspace.netlink.reading import Link
from netspace.nftables.table import Base, Chain, Rule, Table
from netspace.nftables.words import at, write
from netspace.spec.publish import Routed
from netspace.spec.types import Address

NEEDS = "veth"
LINK = "veth"
FILTER = "host"

NAME = TAP
_INDEX = INSIDE_INDEX + 1
_MACS = ("02:00:00:00:00:03", "02:00:00:00:00:04")  # of the veth pair for a domain; no frame has them
# linux/if_tun.h
_SET_PERSIST, _SET_OWNER, _SET_IFF, _SET_INDEX = 0x400454CB, 0x400454CC, 0x400454CA, 0x400454DA
_TAP, _NO_INFORMATION = 0x0002, 0x1000
_OWNER, _PERSIST = 1, 6  # IFLA_TUN_OWNER, IFLA_TUN_PERSIST

_REQUEST = bytes.fromhex("0001080006040001")  # ARP for IPv4 on Ethernet: who has?
_SOLICITATION, _ADVERTISEMENT = 135, 136
_FROM_ROUTER = bytes.fromhex("e0000000")  # router, solicited, override


class Tap(Routed, frozen=True, tag="tap"):
    """A tap device for the environment's own network stack.

    :param ipv4: a fixed address; absent: a stable one from ``network:ipv4``.
    :param ipv6: a fixed address; absent: a stable one from ``network:ipv6``.
    :param mtu: the largest packet in bytes.
    """

    DEVICES: ClassVar[tuple[str, ...]] = ("/dev/net/tun",)

    ipv4: Address | None = None
    ipv6: Address | None = None
    mtu: int = 1500


def ends(spec: Tap, place: EndpointContext) -> Endpoints:
    """Return the ends of a veth pair. The inner end only leads to the tap device, so it has no addresses or routes."""
    pair = veth.ends(spec, place)
    assert pair.inside is not None
    tap: dict[str, Any] = {"mtu": spec.mtu, "up": True}
    details = {DOMAIN_LINK: tap} if place.owner == DOMAIN else {NAME: {**tap, "owner": place.owner}}
    return replace(pair, inside=replace(pair.inside, addresses=(), routes=(), details=details))


def create(wanted: Endpoints, far: int, parents: Mapping[str, int]) -> list[Message]:
    """Return the netlink messages that create the veth pair behind the tap device.

    They are sent from the environment's namespace.
    """
    return veth.create(wanted, far, parents)


def gateway_mac(mac: str) -> str:
    """Return the MAC that the guest sees as its gateway's. It is made up, since the host's end has the guest's MAC."""
    return f"{int(mac[:2], 16) ^ 0x04:02x}{mac[2:]}"


# -- the device ----------------------------------------------------------------------
def details(link: Link, like: Endpoint, hosts: Mapping[int, str]) -> dict[str, Any]:
    """Return the observed tap device, or a domain's veth pair, if *link* is the inner end; else nothing."""
    if not like.details:
        return {}
    with Socket() as inner:
        links = {one.name: one for one in inner.links()}
    if DOMAIN_LINK in like.details:
        ends = [links.get(name) for name in (DOMAIN_LINK, DOMAIN_PEER)]
        if NAME in links or any(end is None or end.kind != LINK for end in ends):
            return {DOMAIN_LINK: None}
        return {DOMAIN_LINK: {"mtu": min(end.mtu for end in ends if end), "up": all(end.up for end in ends if end)}}
    tap = links.get(NAME)
    if tap is None or tap.kind != "tun" or not reading.number(tap.data.get(_PERSIST, b"")):
        return {NAME: None}
    owner = reading.number(tap.data[_OWNER]) if _OWNER in tap.data else None
    return {NAME: {"mtu": tap.mtu, "up": tap.up, "owner": owner}}


def change(index: int, now: Endpoint | None, wanted: Endpoint, parents: Mapping[str, int]) -> list[Message]:
    """Create the device, or change its owner; return the netlink messages that set its mtu and state."""
    if not wanted.details or (now is not None and now.details == wanted.details):
        return []
    if DOMAIN_LINK in wanted.details:
        there = wanted.details[DOMAIN_LINK]
        peer = _paired(there["mtu"])
        return [requests.set_link(index, mtu=there["mtu"], up=there["up"]) for index in (_INDEX, peer)]
    _remove(DOMAIN_LINK)
    tap = wanted.details[NAME]
    had = None if now is None else now.details.get(NAME)
    if had is None or had["owner"] != tap["owner"]:
        _own(tap["owner"])
    return [requests.set_link(_INDEX, mtu=tap["mtu"], up=tap["up"])]


def _remove(name: str) -> None:
    """Remove a network device of this thread's namespace, if it is there and the kernel permits it."""
    with contextlib.suppress(OSError):
        index = socket.if_nametoindex(name)
        with Socket() as inner:
            inner.batch([requests.delete_link(index)])


def _paired(mtu: int) -> int:
    """Make the veth pair for a domain unless it is there; return the index of ``DOMAIN_PEER``.

    :raises OSError: when the kernel refuses.
    """
    _remove(NAME)
    if DOMAIN_LINK not in (name for _, name in socket.if_nameindex()):
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with Socket() as inner:
                made = requests.add_veth(DOMAIN_LINK, _MACS[0], mtu, DOMAIN_PEER, _MACS[1], own, index=_INDEX)
                for failure in inner.batch([made]).values():
                    raise OSError(failure.code, f"{DOMAIN_LINK} can't be made: {os.strerror(failure.code)}")
        finally:
            os.close(own)
    return socket.if_nametoindex(DOMAIN_PEER)


def _own(owner: int) -> None:
    """Create the tap device, or change its owner.

    :raises OSError: with a remedy in its text.
    """
    try:
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as err:
        raise OSError(
            err.errno, f"no tap device can be made: {err}; load the kernel's module tun (modprobe tun)"
        ) from err
    try:
        if NAME not in (name for _, name in socket.if_nameindex()):
            fcntl.ioctl(device, _SET_INDEX, struct.pack("=i", _INDEX))
        fcntl.ioctl(device, _SET_IFF, struct.pack("16sH22x", NAME.encode(), _TAP | _NO_INFORMATION))
        fcntl.ioctl(device, _SET_OWNER, owner)
        fcntl.ioctl(device, _SET_PERSIST, 1)
    except OSError as err:
        if err.errno == errno.EBUSY:
            raise OSError(err.errno, f"a program has {NAME} open; stop the environment and apply again") from err
        raise
    finally:
        os.close(device)


# -- the table -----------------------------------------------------------------------
def guard(wanted: Endpoints, place: EndpointContext) -> tuple[Table, ...]:
    """Return the table that moves frames between tap device and veth pair, and drops all others."""
    inside = wanted.inside
    assert inside is not None
    guest = bytes.fromhex(place.mac.replace(":", ""))
    router = bytes.fromhex(gateway_mac(place.mac).replace(":", ""))
    sent = [f"{at('link', 6, guest, negate=True)} drop"]
    received: list[Rule] = []
    for family, address in sorted(place.addresses.items()):
        own = socket.inet_pton(reading.FAMILIES[family], address)
        gateway = socket.inet_pton(reading.FAMILIES[family], place.gateways[family])
        of = FAMILIES[family]
        if family == "ipv4":
            sent.append(_arp_answer(guest, own, router, gateway))
        else:
            sent += [_neighbour_answer(guest, own, router, gateway, option=option) for option in (True, False)]
        sent.append(
            f"meta protocol {of.word} {at('link', 0, router)} {at('network', of.address['saddr'], own)} "
            f"{write('link', 0, guest)} fwd to {INSIDE_INDEX}"
        )
        received.append(
            f"meta protocol {of.word} {at('network', of.address['daddr'], own)} "
            f"{write('link', 6, router)} fwd to {_INDEX}"
        )
    (device,) = inside.details
    chains = {
        name: Chain(rules, Base("filter", "ingress", policy="drop", device=link))
        for name, link, rules in (("sent", device, sent), ("received", inside.name, received))
    }
    return (Table(chains, family="netdev"),)


def _arp_answer(guest: bytes, own: bytes, router: bytes, gateway: bytes) -> Rule:
    """Return the rule that answers the guest's ARP request for *gateway* with the MAC *router* (RFC 826)."""
    return " ".join([
        "meta protocol arp", at("network", 0, _REQUEST), at("network", 8, guest + own), at("network", 24, gateway),
        write("link", 0, guest + router),
        write("network", 6, b"\0\2"),
        write("network", 8, router + gateway),
        write("network", 18, guest + own),
        f"fwd to {_INDEX}",
    ])  # fmt: skip


def _neighbour_answer(guest: bytes, own: bytes, router: bytes, gateway: bytes, *, option: bool) -> Rule:
    """Return the rule that turns a neighbour solicitation for *gateway* into the answer (RFC 4861).

    :param option: whether the solicitation has the option with the guest's MAC. If so, the answer has the option with
        the router's MAC.
    """
    head = bytes([_ADVERTISEMENT, 0, 0, 0]) + _FROM_ROUTER
    answer = head + gateway + (b"\x02\x01" + router if option else b"")
    pseudo = gateway + own + struct.pack(">IxxxB", len(answer), socket.IPPROTO_ICMPV6)
    checksum = struct.pack(">H", _checksum(pseudo + answer))
    asked = [at("network", 64, b"\x01\x01" + guest)] if option else []
    more = [write("network", 64, b"\x02\x01" + router)] if option else []
    return " ".join([
        "meta protocol ip6", at("network", 4, struct.pack(">HBB", len(answer), socket.IPPROTO_ICMPV6, 255)),
        at("network", 8, own),
        at("network", 40, bytes([_SOLICITATION, 0])), at("network", 48, gateway), *asked,
        write("link", 0, guest + router),
        write("network", 8, gateway + own),
        write("network", 40, head[:2] + checksum + _FROM_ROUTER),
        *more,
        f"fwd to {_INDEX}",
    ])  # fmt: skip


def _checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
