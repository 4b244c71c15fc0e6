"""An interface as values: its two ends, desired or observed. Pure.

Each kind of interface returns its desired :class:`Endpoints`. This module describes an end to the operator, and returns
the netlink messages that change an observed end into the desired one.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from netspace.compared import Compared
from netspace.layout import Layout
from netspace.netlink import requests
from netspace.netlink.connection import Message
from netspace.netlink.reading import Link, Route

# The inner end's index, where we can choose it. A new namespace holds lo (1) and a few idle tunnels
# (sit0, gre0...) that the kernel creates in every namespace if their modules are loaded.
INSIDE_INDEX = 64
INSIDE_NAME = "eth0"


class EndpointContext(msgspec.Struct, frozen=True):
    """Facts about one interface that its kind needs in addition to the declaration.

    :param host_name: the host end's name.
    :param mac: the MAC of the interface.
    :param alias: the alias that marks netspace's network devices.
    :param addresses: the environment's addresses, by family (``ipv4``, ``ipv6``).
    :param gateways: the host's addresses at the host's end, by family.
    :param forwarding: whether the host forwards IPv4 packets that arrive at its end.
    :param ipv6: whether the kernel has IPv6.
    :param secret: the file that holds the private key, if the kind has one.
    :param public_key: the public key; empty until the key exists.
    :param owner: the host's uid that owns the device, if the kind has a device.
    """

    host_name: str
    mac: str
    alias: str
    addresses: Mapping[str, str] = msgspec.field(default_factory=dict)
    gateways: Mapping[str, str] = msgspec.field(default_factory=dict)
    forwarding: bool = False
    ipv6: bool = True
    secret: str = ""
    public_key: str = ""
    owner: int = 0


class Endpoint(Compared, frozen=True, eq=False):
    """One end of an interface.

    :param mac: the MAC; empty: netspace doesn't set it.
    :param arp: whether the kernel resolves neighbours.
    :param addresses: sorted, as ``address/prefix``.
    :param ipv4: the kernel's settings of this end (``net.ipv4.conf.<name>``).
    :param accept_ra: ``net.ipv6.conf.<name>.accept_ra``; None: the namespace's default applies.
    :param rate: bits per second that it may send; 0: unlimited.
    :param kind: the kernel's name of the network device's kind.
    :param details: settings that only the kind knows, by the names that the operator uses.
    :param secret: the file that holds its key; neither shown nor compared.
    """

    name: str
    mac: str
    mtu: int
    up: bool = True
    arp: bool = True
    alias: str = ""
    addresses: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()
    ipv4: Mapping[str, int] = msgspec.field(default_factory=dict)
    accept_ra: int | None = None
    rate: int = 0
    kind: str = ""
    details: Mapping[str, Any] = msgspec.field(default_factory=dict)
    secret: str = ""

    def compared(self) -> object:
        """Return all fields but ``secret``."""
        return msgspec.structs.astuple(self)[:-1]

    def __repr__(self) -> str:
        return f"Endpoint({self.facts()})"

    def facts(self) -> dict[str, Any]:
        """Return the end as plain values, to show and compare."""
        facts: dict[str, Any] = {
            "name": self.name,
            "mac": self.mac,
            "mtu": self.mtu,
            "up": self.up,
            "arp": self.arp,
            "addresses": list(self.addresses),
            "routes": sorted(str(route) for route in self.routes),
            **self.details,
        }
        if self.kind:
            facts["kind"] = self.kind
        if not self.mac:
            del facts["mac"]
        if self.alias:
            facts["alias"] = self.alias
        if self.ipv4:
            facts["ipv4"] = dict(self.ipv4)
        if self.accept_ra is not None:
            facts["accept_ra"] = self.accept_ra
        if self.rate:
            facts["rate"] = self.rate
        return facts


class Endpoints(Compared, frozen=True, eq=False):
    """Both ends of an interface. A kind may have no end, or only an inner end.

    :param inside: the end in the environment's namespace.
    :param outside: the end on the host.
    :param made_as: the temporary name of a device that is created from the host's namespace, where a device with its
        final name may already exist.
    """

    inside: Endpoint | None = None
    outside: Endpoint | None = None
    made_as: str = ""

    def compared(self) -> object:
        """Return both ends; the temporary name doesn't count."""
        return self.inside, self.outside

    def facts(self) -> dict[str, Any]:
        return {
            key: None if end is None else end.facts()
            for key, end in (("inside", self.inside), ("outside", self.outside))
        }


# One run needs each name several times.
@functools.lru_cache(maxsize=16384)
def host_name(instance: str, environment: str) -> str:
    """Return the host end's name: ``ns`` and 13 characters (65 bits) of a hash."""
    number = int.from_bytes(hashlib.sha256(f"{instance}/{environment}".encode()).digest(), "big")
    digits = "abcdefghijklmnopqrstuvwxyz234567"
    return "ns" + "".join(digits[number >> 5 * place & 31] for place in range(13))


@functools.lru_cache(maxsize=16384)
def mac(instance: str, environment: str) -> str:
    """Return the MAC of the environment's interface, which the layout derives from the names."""
    return Layout(instance).mac(environment)


def alias(instance: str, environment: str) -> str:
    return f"netspace {instance}/{environment}"


def seen(
    link: Link,
    addresses: Sequence[str],
    routes: Sequence[Route],
    like: Endpoint | None,
    rate: int = 0,
    details: Mapping[str, Any] | None = None,
) -> Endpoint:
    """Return the kernel's *link* as an observed end. It has only those settings that *like* has, too.

    :param like: the desired end; None: there is none.
    """
    return Endpoint(
        name=link.name,
        mac=link.mac if like is None or like.mac else "",
        mtu=link.mtu,
        up=link.up,
        arp=link.arp,
        alias=link.alias,
        addresses=tuple(sorted(addresses)),
        routes=tuple(sorted(routes, key=str)),
        ipv4={} if like is None else {key: link.ipv4[key] for key in like.ipv4 if key in link.ipv4},
        accept_ra=None if like is None or like.accept_ra is None else link.accept_ra,
        rate=rate,
        kind=link.kind,
        details=details or {},
    )


def messages(index: int, now: Endpoint | None, wanted: Endpoint) -> list[Message]:
    """Return the netlink messages that change network device *index* from *now* (None: just created) to *wanted*.

    They keep the kernel from adding IPv6 addresses to the host end. At the inner end, the namespace's settings do that.
    """
    todo: list[Message] = []
    rename = now is not None and now.name != wanted.name
    if rename:
        todo.append(requests.set_link(index, up=False))  # older kernels can't rename a device that is up
    attributes: dict[str, Any] = {}
    if now is not None:
        for key in ("name", "mac", "mtu", "arp"):
            if getattr(now, key) != getattr(wanted, key) and getattr(wanted, key) != "":
                attributes[key] = getattr(wanted, key)
    for key in ("alias", "ipv4"):
        if getattr(wanted, key) and (now is None or getattr(now, key) != getattr(wanted, key)):
            attributes[key] = getattr(wanted, key)
    if wanted.accept_ra is not None:
        attributes["addr_gen_none"] = True
    if attributes:
        todo.append(requests.set_link(index, **attributes))
    down = now is None or rename or not now.up
    if wanted.rate != (0 if now is None else now.rate):
        change = requests.limit_rate(index, wanted.rate, wanted.mtu) if wanted.rate else requests.unlimit_rate(index)
        todo.append(change)  # before it is up
    had_addresses = () if now is None else now.addresses
    # The kernel removes routes (and IPv6 addresses) of a device that is set down: add all of them again.
    had_routes = () if now is None or down else now.routes
    todo += [requests.delete_route(index, route) for route in had_routes if route not in wanted.routes]
    todo += [requests.delete_address(index, one) for one in had_addresses if one not in wanted.addresses]
    if down:
        todo.append(requests.set_link(index, up=True))
    todo += [requests.add_address(index, one) for one in wanted.addresses if down or one not in had_addresses]
    # When an address is removed, the kernel also removes the routes that prefer it as their source.
    again = down or set(had_addresses) != set(wanted.addresses)
    todo += [requests.add_route(index, route) for route in wanted.routes if again or route not in had_routes]
    return todo
