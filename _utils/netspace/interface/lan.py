"""Addresses, gateways and routes of the kinds on an external network. Pure.

netspace doesn't manage such a network. The operator declares each address, with the network's prefix, and netspace
takes no configuration from the network (no router advertisement, no DHCP). All routes are explicit, even the route to
the network itself, so that drift is detected.

With IPv6 an interface has a link-local address, derived from the MAC, since neighbours and routers answer to it (RFC
4861). netspace sets that address, not the kernel, and checks it like any other.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

from netspace.interface.endpoints import INSIDE_NAME, Endpoint, EndpointContext
from netspace.netlink.reading import Link, Route
from netspace.patterns import pattern
from netspace.spec.types import EVERYWHERE, Address, Cidr, Direction, Filtered, Prefixed, Way

_ANYWHERE = {4: "0.0.0.0/0", 6: "::/0"}
_LINK_LOCAL = ipaddress.IPv6Network("fe80::/10")
_NAME = pattern(r"[^\s/:\0]{1,15}")
_MAX_ROUTES = 256


class Lan(Filtered, frozen=True):
    """Base of all kinds on an external network, with the keys that they share.

    :param ipv4: the interface's address and the network's prefix, such as ``198.51.100.7/24``.
    :param ipv6: the same for IPv6. At least one of ``ipv4`` and ``ipv6`` must be given.
    :param gateway4: the default router for IPv4; absent: only this network and ``routes`` are reached.
    :param gateway6: the default router for IPv6.
    :param routes: more networks: a list of ``{to, via}``.
    :param mtu: the largest packet in bytes; at most the parent's, and equal to the bridge's. 1430 for vxlan, so that it
        fits an outer mtu of 1500.
    """

    ipv4: Prefixed | None = None
    ipv6: Prefixed | None = None
    gateway4: Address | None = None
    gateway6: Address | None = None
    routes: tuple[Way, ...] = ()
    mtu: int = 1500

    def network(self) -> str:
        """Return a description of the external network."""
        raise NotImplementedError

    def networks(self, direction: Direction) -> tuple[Cidr, ...]:
        """Return the networks with which the interface exchanges packets.

        For outgoing packets these are the networks with a route; for incoming packets, all.
        """
        if direction == "in":
            return EVERYWHERE
        own = [Cidr(one.interface.network) for one in (self.ipv4, self.ipv6) if one is not None]
        beyond = [EVERYWHERE[place] for place, by in enumerate((self.gateway4, self.gateway6)) if by is not None]
        return (*own, *beyond, *(way.to for way in self.routes))

    def families(self) -> frozenset[str]:
        return families(self)

    def problems(self) -> Iterable[tuple[str, str]]:
        return address_problems(self)

    def claims(self) -> Iterable[tuple[str, str]]:
        for family in ("ipv4", "ipv6"):
            address = getattr(self, family)
            if address is not None:
                yield family, f"{address.interface.ip} on {self.network()}"


def families(spec: Any) -> frozenset[str]:
    """Return the families in which an interface has a declared address."""
    return frozenset(family for family in ("ipv4", "ipv6") if getattr(spec, family) is not None)


def name_problem(name: str) -> str:
    """Return why *name* can't be a network device's name (kernel: dev_valid_name); empty if it can."""
    if _NAME.fullmatch(name) and name not in (".", "..") and len(name.encode()) <= 15:
        return ""
    return f"{name!r} can't be a network device's name: 1 to 15 bytes, no space, '/' or ':'"


def address_problems(spec: Any) -> Iterable[tuple[str, str]]:
    """Yield the problems of a declared interface's addresses, gateways and routes, as pairs: key, message."""
    if spec.ipv4 is None and spec.ipv6 is None:
        yield "ipv4", "give ipv4 or ipv6 (address/prefix): netspace takes no address from an external network"
    networks: dict[int, ipaddress.IPv4Network | ipaddress.IPv6Network] = {}
    for version in (4, 6):
        key, address = f"ipv{version}", getattr(spec, f"ipv{version}")
        if address is not None:
            parsed = address.interface
            networks[version] = parsed.network
            if reason := _unfit(parsed, version):
                yield key, f"{address} {reason}"
        gateway = getattr(spec, f"gateway{version}", None)
        if gateway is not None and (reason := _unreachable(gateway, version, address)):
            yield f"gateway{version}", f"{gateway} {reason}"
    if len(spec.routes) > _MAX_ROUTES:
        yield "routes", f"more than {_MAX_ROUTES}"
    taken = {str(network) for network in networks.values()}
    taken |= {_ANYWHERE[version] for version in (4, 6) if getattr(spec, f"gateway{version}", None) is not None}
    for index, way in enumerate(spec.routes):
        version = way.to.network.version
        if way.to in taken:
            yield f"routes:{index}:to", f"there is a route to {way.to} already"
        taken.add(str(way.to))
        if version not in networks:
            yield f"routes:{index}:to", f"{way.to} can't be reached without an ipv{version} address"
        elif way.via is not None and (reason := _unreachable(way.via, version, getattr(spec, f"ipv{version}"))):
            yield f"routes:{index}:via", f"{way.via} {reason}"


def _unfit(address: ipaddress.IPv4Interface | ipaddress.IPv6Interface, version: int) -> str:
    if address.version != version:
        return f"is not an ipv{version} address"
    ip, network = address.ip, address.network
    if ip.is_multicast or ip.is_loopback or ip.is_unspecified or ip.is_link_local:
        return "can't be the address of one host on a network"
    bits = network.max_prefixlen - network.prefixlen
    if bits > 1 and (ip == network.network_address or (version == 4 and ip == network.broadcast_address)):
        return "is the network's own or its broadcast address"
    return ""


def _unreachable(gateway: Address, version: int, address: Prefixed | None) -> str:
    parsed = ipaddress.ip_address(gateway)
    if parsed.version != version:
        return f"is not an ipv{version} address"
    if address is None:
        return f"can't be reached without an ipv{version} address"
    if parsed == address.interface.ip:
        return "is the interface's own address"
    if parsed not in address.interface.network and not (version == 6 and parsed in _LINK_LOCAL):
        return f"is not on the interface's network ({address.interface.network})"
    return ""


def link_local(mac: str) -> str:
    """Return the link-local address that belongs to a MAC (RFC 4291, appendix A)."""
    raw = bytes.fromhex(mac.replace(":", ""))
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + bytes([raw[0] ^ 2]) + raw[1:3] + b"\xff\xfe" + raw[3:]))


def inside(
    spec: Any,
    place: EndpointContext,
    kind: str,
    details: Mapping[str, Any],
    *,
    mac: str | None = None,
    neighbours: bool = True,
    more: Iterable[str] = (),
) -> Endpoint:
    """Return the inner end of an interface on an external network.

    :param mac: the MAC; None: the MAC in *place*; empty: netspace doesn't set it.
    :param neighbours: whether the end resolves neighbours, and so needs a link-local address.
    :param more: networks that are reached without a router.
    """
    addresses: list[str] = []
    routes: dict[str, Route] = {}
    for version in (4, 6):
        address = getattr(spec, f"ipv{version}")
        if address is None or f"ipv{version}" not in place.addresses:
            continue
        addresses.append(str(address))
        network = address.interface.network
        if network.prefixlen < network.max_prefixlen:
            routes[str(network)] = Route(str(network))
        if version == 6 and neighbours:
            addresses.append(f"{link_local(place.mac)}/64")
            routes["fe80::/64"] = Route("fe80::/64")
        gateway = getattr(spec, f"gateway{version}", None)
        if gateway is not None:
            routes[_ANYWHERE[version]] = Route(_ANYWHERE[version], via=str(gateway))
    ways = [Way(to=to) for to in more] + list(spec.routes)  # type: ignore[arg-type]
    for way in ways:
        if f"ipv{6 if ':' in way.to else 4}" in place.addresses:
            routes[str(way.to)] = Route(str(way.to), via=str(way.via or ""))
    return Endpoint(
        name=INSIDE_NAME,
        mac=place.mac if mac is None else mac,
        mtu=spec.mtu,
        arp=neighbours,
        addresses=tuple(sorted(addresses)),
        routes=tuple(sorted(routes.values(), key=lambda route: (bool(route.via), str(route)))),
        kind=kind,
        details=details,
        secret=place.secret,
    )


def lacks_parent(
    name: str, mtu: int, links: Mapping[str, Link], *, room: int = 0, up: bool = False, alone: bool = True
) -> str:
    """Return why the host's network device *name* can't be a parent; empty if it can.

    :param mtu: the interface's mtu.
    :param room: bytes that encapsulation adds to each packet.
    :param up: whether the parent must be up.
    :param alone: whether a port of a bridge is refused.
    """
    parent = links.get(name)
    if parent is None:
        return f"this host has no network device {name}: create it, or name another one as parent"
    if parent.mtu < mtu + room:
        return f"its parent {name} has an mtu of {parent.mtu}: raise that, or declare mtu: {parent.mtu - room}"
    if up and not parent.up:
        return f"its parent {name} is down: bring it up (ip link set {name} up)"
    if alone and parent.master:
        return f"its parent {name} is a port of a bridge: use the bridge itself as parent, or take it out"
    return ""
